# SPDX-License-Identifier: MIT
"""The descriptors that a pager opens beside its files: how, and what tells why one can't be had."""

from __future__ import annotations

import contextlib
import errno
import os

from .limits import refusal

__all__ = ["SIGBUS", "UFFD", "open_eventfd", "open_pagemap", "open_pidfd"]

SIGBUS = 1 << 7  # UFFD_FEATURE_SIGBUS
#: The option ``uffd`` in the core's numbers, which also say how one was opened.
UFFD = {"auto": 0, "device": 1, "syscall": 2, "user-mode": 3}


def open_eventfd(undo: contextlib.ExitStack) -> int:
    """An eventfd that nobody waits in."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    undo.callback(os.close, fd)
    return fd


def open_pagemap(undo: contextlib.ExitStack) -> int:
    """What tells which pages are there; -1 where there is no /proc, and so nothing can be plain."""
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    undo.callback(os.close, fd)
    return fd


def open_pidfd(pid: int) -> int:
    """What is readable once a process has ended."""
    try:
        return os.pidfd_open(pid)
    except OSError as e:
        raise refusal(e.errno or errno.EIO, "pidfd_open") from e
