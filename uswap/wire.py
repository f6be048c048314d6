# SPDX-License-Identifier: MIT
"""What client and pager say to each other: one datagram each way, one place for both.

The socket is a Unix SOCK_SEQPACKET pair. A message is a JSON object; a request carries ``id`` and
``op``, its answer the same ``id`` and either ``ok`` or ``error`` with an errno. The first request,
``hello``, also carries descriptors, and in ``fds`` their names. Answers may come in any order.
"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any

__all__ = ["Closed", "receive", "receive_hello", "send"]

FDS_MAX = 8
LARGEST = 64 << 10

Message = dict[str, Any]


class Closed(Exception):
    """The other side is gone."""


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one message, with descriptors if there are any."""
    data = json.dumps(message).encode()
    ancillary = []
    if fds:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
    try:
        sock.sendmsg([data], ancillary)
    except (BrokenPipeError, ConnectionResetError) as e:
        raise Closed from e


def receive(sock: socket.socket) -> Message:
    """Receive one message."""
    try:
        data = sock.recv(LARGEST)
    except ConnectionResetError as e:
        raise Closed from e
    return _parse(data)


def receive_hello(sock: socket.socket) -> tuple[Message, dict[str, int]]:
    """Receive the first message, and the descriptors by name."""
    fds = array.array("i")
    data, ancillary, _flags, _address = sock.recvmsg(
        LARGEST, socket.CMSG_LEN(FDS_MAX * fds.itemsize)
    )
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
    message = _parse(data)
    if len(message["fds"]) != len(fds):
        for fd in fds:
            os.close(fd)
        raise Closed
    return message, dict(zip(message["fds"], fds, strict=True))


def _parse(data: bytes) -> Message:
    if not data:
        raise Closed
    message: Message = json.loads(data)
    return message
