# SPDX-License-Identifier: MIT
"""What the pager process says to people: lines on stderr, which it shares with the client.

The loop that says something has faults to serve, so a line must neither raise nor wait. stderr may be
closed, a pipe that nobody reads or whose reader is gone, a full disk, a terminal that has hung up or is
held by ^S. A line that can't be written at once is dropped; the counters in stats() tell the same.
"""

from __future__ import annotations

import contextlib
import os
import select

__all__ = ["say"]

STDERR = 2
LONGEST = (
    4000  # bytes: below PIPE_BUF, so that a pipe takes all of it at once or says that it can't
)


def say(text: str) -> None:
    """Write one line, if that is possible at once."""
    line = f"uswap: {text}\n".encode(errors="replace")[:LONGEST]
    # EPIPE, EIO, EBADF, ENOSPC, EAGAIN. Python ignores SIGPIPE, and SIGTTOU is for shells to care about.
    with contextlib.suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(STDERR, select.POLLOUT)
        if poll.poll(0) == [(STDERR, select.POLLOUT)]:
            os.write(STDERR, line)
