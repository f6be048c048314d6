# SPDX-License-Identifier: MIT
"""Start of the pager process; its one argument is the number of the inherited socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys

import uvloop

from .. import limits, wire
from .loop import Loop

STDERR = 2
DESCRIPTORS = (
    48  # that the pager process opens, at most; those of the event loop and of libraries included
)


async def serve(sock: socket.socket) -> None:
    """Greet the client, then serve it until it is gone."""
    try:
        hello, fds = wire.receive_hello(sock)
    except wire.Closed:
        return
    except OSError as e:
        refuse(sock, e)
        return
    sock.setblocking(False)
    with contextlib.suppress(wire.Closed):  # the client has gone meanwhile
        try:
            loop = Loop(sock, hello, fds)
        except OSError as e:
            refuse(sock, e)
            return
        try:
            wire.send(sock, {"ok": loop.about()})
            await loop.run()
        finally:
            loop.close()


def refuse(sock: socket.socket, error: OSError) -> None:
    """Tell the client why there is no pager."""
    with contextlib.suppress(wire.Closed):
        wire.send(sock, {"error": error.errno, "text": error.strerror or str(error)})


def occupy_low_descriptors() -> None:
    """Make sure that no descriptor of ours is below 3, and that what is written to stderr goes nowhere else."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(fd)


def raise_soft_limits() -> None:
    """Take what the hard limits allow: what limits memory here is the options.

    A soft limit is what the user's program gives itself, often far below the address space that sparse
    reservations take.
    """
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE):
        _soft, hard = resource.getrlimit(limit)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (hard, hard))


def check_descriptors() -> None:
    """Raise OSError (EMFILE) unless there is room for all that will be opened.

    Later the same lack shows as something else: a library that is not found, a thread that is not followed.
    """
    opened: list[int] = []
    try:
        while len(opened) < DESCRIPTORS:
            opened.append(os.dup(STDERR))
    except OSError as e:
        what = f"{DESCRIPTORS} descriptors of the pager process"
        raise OSError(e.errno, limits.explain(e.errno or 0, what)) from e
    finally:
        for fd in opened:
            os.close(fd)


def main() -> None:
    """Run."""
    occupy_low_descriptors()
    raise_soft_limits()
    # A terminal's signals, and those that a supervisor sends to a whole group, are for the client.
    # The pager ends when the client has ended, and not a moment before.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(name, signal.SIG_IGN)
    sock = socket.socket(fileno=int(sys.argv[1]))
    # What the process was started in must be removable while it runs.
    os.chdir("/")
    try:
        check_descriptors()
    except OSError as e:
        refuse(sock, e)
        return
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(sock))
    else:
        uvloop.install()
        asyncio.run(serve(sock))


if __name__ == "__main__":
    main()
