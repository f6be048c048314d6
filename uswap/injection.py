# SPDX-License-Identifier: MIT
"""Delays and failures that tests ask for: the options ``delays`` and ``inject``."""

from __future__ import annotations

import errno

from ._core import lib
from .limits import check

__all__ = ["IO_OPS", "delay_here", "fail_here", "parse_delays", "parse_inject"]

#: Operations of the swap file, which the pager process has; the others are system calls of both processes.
IO_OPS = {"read": 0, "write": 1}
IO_ERRORS = {"SHORT": 1000, "FLIP": 1001, "LATE": 1002, "SLOW": 1003}


def parse_delays(text: str) -> list[tuple[str, int]]:
    """The parts of "point:usec,point:usec"."""
    out = []
    for part in filter(None, text.split(",")):
        point, _, usec = part.partition(":")
        out.append((point, int(usec)))
    return out


def parse_inject(text: str) -> list[tuple[str, int, int]]:
    """The parts of "op:ERRNO:every,op:ERRNO:every"."""
    out = []
    for part in filter(None, text.split(",")):
        op, name, every = part.split(":")
        number = IO_ERRORS.get(name) or getattr(errno, name)
        out.append((op, int(number), int(every)))
    return out


def delay_here(delays: list[tuple[str, int]]) -> None:
    """Have this process wait at its points."""
    for point, usec in delays:
        check(lib.us_delay_set(point.encode(), usec), f"delays={point!r}")


def fail_here(inject: list[tuple[str, int, int]]) -> None:
    """Have this process's system calls fail."""
    for op, error, every in inject:
        if op not in IO_OPS:
            check(lib.us_inject_set(op.encode(), error, every), f"inject={op!r}")
