# SPDX-License-Identifier: MIT
"""The swap file: opened by the client, with the client's rights, and handed to the pager.

A directory gets a file that has no name (O_TMPFILE), or where the file system has no such thing one that
loses its name at once: nothing stays behind, whatever ends the process. A path of its own is used in
place, and only with overwrite=True if it exists.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import tempfile
from dataclasses import dataclass

from .sizes import format_size

__all__ = ["SwapFile", "open_swap"]

_BLKGETSIZE64 = 0x80081272


@dataclass
class SwapFile:
    """An open swap file."""

    fd: int
    size: int
    """Bytes that may be used; a multiple of the segment."""
    direct: bool
    """O_DIRECT; else through the page cache."""
    reserved: bool
    """Room is reserved; else writing may meet a full file system."""
    about: str

    def close(self) -> None:
        """Close it. One without a name is gone then."""
        os.close(self.fd)


def open_swap(path: str, size: int, *, segment: int, overwrite: bool = False) -> SwapFile:
    """Open or make the swap file.

    Args:
        path: a directory, a file, or a block device.
        size: bytes wanted.
        segment: bytes; the size used is a multiple of it.
        overwrite: an existing file or device may be used; what it holds is lost.

    Raises:
        FileExistsError: the file exists and overwrite is not given.
        OSError: it can't be opened, or there is no room for it; names the path.
    """
    size -= size % segment
    flags = os.O_RDWR | os.O_CLOEXEC
    if os.path.isdir(path):
        fd, direct, how = _unnamed(path, flags)
    else:
        exists = os.path.exists(path)
        if exists and not overwrite:
            raise FileExistsError(
                errno.EEXIST,
                "swapfile exists; accepted: a directory, a new path, or overwrite=True to use it up",
                path,
            )
        fd, direct = _open(path, flags | (0 if exists else os.O_CREAT | os.O_EXCL))
        how = path
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISBLK(mode):
            raw = fcntl.ioctl(fd, _BLKGETSIZE64, b"\0" * 8)
            size = min(size, struct.unpack("Q", raw)[0])
            size -= size % segment
            reserved = True
        elif stat.S_ISREG(mode):
            reserved = _reserve(fd, size, path)
        else:
            raise OSError(errno.EINVAL, "swapfile is neither a file nor a block device", path)
    except BaseException:
        os.close(fd)
        raise
    about = f"{how}, {format_size(size)}, {'O_DIRECT' if direct else 'through the page cache'}"
    return SwapFile(fd, size, direct, reserved, about)


def _open(path: str, flags: int) -> tuple[int, bool]:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    # The file system refuses O_DIRECT (and may have made the file before it said so).
    return os.open(path, flags & ~os.O_EXCL, 0o600), False


def _unnamed(directory: str, flags: int) -> tuple[int, bool, str]:
    try:
        fd, direct = _open(directory, flags | os.O_TMPFILE)
        return fd, direct, f"unnamed in {directory}"
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    made, name = tempfile.mkstemp(prefix="uswap-", dir=directory)
    try:
        fd, direct = _open(name, flags)
    finally:
        os.unlink(name)
        os.close(made)
    return fd, direct, f"unnamed in {directory}"


def _reserve(fd: int, size: int, path: str) -> bool:
    try:
        os.posix_fallocate(fd, 0, size)
        return True
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EFBIG):
            raise OSError(
                e.errno,
                f"no room for a swap file of {format_size(size)}; accepted: a smaller swap=",
                path,
            ) from e
        if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
    with contextlib.suppress(OSError):
        os.ftruncate(fd, size)
    return False
