# SPDX-License-Identifier: MIT
"""Start of the pager process; its one argument is the number of the inherited socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

import uvloop

from .. import wire
from .loop import Loop


async def serve(sock: socket.socket) -> None:
    """Greet the client, then serve it until it is gone."""
    try:
        hello, fds = wire.receive_hello(sock)
    except wire.Closed:
        return
    sock.setblocking(False)
    with contextlib.suppress(wire.Closed):  # the client has gone meanwhile
        try:
            loop = Loop(sock, hello, fds)
        except OSError as e:
            wire.send(sock, {"error": e.errno, "text": e.strerror or str(e)})
            return
        try:
            wire.send(sock, {"ok": loop.about()})
            await loop.run()
        finally:
            loop.close()


def main() -> None:
    """Run."""
    # A terminal's signals, and those that a supervisor sends to a whole group, are for the client.
    # The pager ends when the client has ended, and not a moment before.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(name, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    # What the process was started in must be removable while it runs.
    os.chdir("/")
    uvloop.install()
    import asyncio

    asyncio.run(serve(sock))


if __name__ == "__main__":
    main()
