# SPDX-License-Identifier: MIT
"""The first words between client and pager: the configuration, with descriptors, and its answer.

The socket is a Unix SOCK_SEQPACKET pair. The client's first message, ``hello``, is a JSON object, which
carries descriptors, and in ``fds`` their names. The answer is one too: ``ok``, or ``error`` with an errno
and ``text``. From then on there are us_request_t and us_reply_t of csrc/uswap.h, a datagram each.
"""

from __future__ import annotations

import array
import errno
import json
import os
import socket
from typing import Any

from . import limits

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
    if len(message["fds"]) != len(fds):  # the kernel passes as many as the limit has room for
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, limits.explain(errno.EMFILE, "descriptors of the client"))
    return message, dict(zip(message["fds"], fds, strict=True))


def _parse(data: bytes) -> Message:
    if not data:
        raise Closed
    message: Message = json.loads(data)
    return message
