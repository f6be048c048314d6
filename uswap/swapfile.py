# SPDX-License-Identifier: MIT
"""The swap file: opened by the client, with the client's rights, and handed to the pager.

A directory gets a file that has no name (O_TMPFILE), or where the file system has no such thing one that
loses its name at once: nothing stays behind, whatever ends the process. A path of its own is used in
place, and only with overwrite=True if it exists.

Whether O_DIRECT works is asked of the kernel (statx), which knows the file system and the device below
it; that open() takes the flag means little, since some take it and go through the page cache all the
same. What the kernel does not say is tried, and the page cache looked at. The file's format is aligned
to ALIGN, so where more is wanted there is no O_DIRECT. The file is then used through the page cache, and
the I/O engine, which sees that from the descriptor's flags, drops what the cache would keep.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import mmap
import os
import re
import stat
import struct
import tempfile
from dataclasses import dataclass

from . import limits
from ._core import ffi, lib
from .errors import LimitError
from .options import SWAP_SEGMENTS
from .sizes import format_size

__all__ = ["ALIGN", "SwapFile", "open_swap"]

ALIGN = 4096  # US_SEG_ALIGN: of all that is read and written, and of the buffers
_BLKGETSIZE64 = 0x80081272


@dataclass
class SwapFile:
    """An open swap file."""

    fd: int
    size: int
    """Bytes that may be used; a multiple of the segment."""
    direct: bool
    """O_DIRECT; else through the page cache."""
    why: str
    """How that is known."""
    in_ram: bool
    """It takes the memory that it is to spare: tmpfs."""
    reserved: bool
    """Room is reserved; else writing may meet a full file system."""
    about: str

    def close(self) -> None:
        """Close it. One without a name is gone then. pre: the pager process has ended."""
        # A process that was forked by other means than Python's may have the descriptor, and so the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_UN)
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
        LimitError: the block device is too small.
        OSError: it can't be opened, or there is no room for it; names the path.
    """
    size -= size % segment
    flags = os.O_RDWR | os.O_CLOEXEC
    made = False
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
        device = _is_device(path)
        if exists and not device and (by := _kernel_use(path)) is not None:
            raise _in_use(path, by)
        # Of a device O_EXCL is refused where it is mounted, a swap area, or another pager's.
        exclusive = os.O_EXCL if device else 0 if exists else os.O_CREAT | os.O_EXCL
        try:
            fd, direct = _open(path, flags | exclusive)
        except OSError as e:
            if not device or e.errno != errno.EBUSY:
                raise
            raise _in_use(path, _kernel_use(path) or "used by another program") from e
        how, made = path, not exists
    try:
        try:
            locked = _lock(fd)
        except BlockingIOError as e:
            made = False
            raise _in_use(path, "the swap file of another pager") from e
        mode = os.fstat(fd).st_mode
        if stat.S_ISBLK(mode):
            raw = fcntl.ioctl(fd, _BLKGETSIZE64, b"\0" * 8)
            size = min(size, struct.unpack("Q", raw)[0])
            size -= size % segment
            if size < SWAP_SEGMENTS * segment:
                raise LimitError(
                    f"swapfile={path!r} has room for {size // segment} segments of "
                    f"{format_size(segment)}; accepted: a device of {SWAP_SEGMENTS} or more, or a "
                    "smaller segment="
                )
            reserved = True
        elif stat.S_ISREG(mode):
            reserved = _reserve(fd, size, path)
        else:
            raise OSError(errno.EINVAL, "swapfile is neither a file nor a block device", path)
        in_ram = lib.us_in_ram(fd) == 1
        if in_ram:
            direct, why = False, "it is in RAM"
        elif direct:
            direct, why = _works(fd)
        else:
            why = "the file system refuses it"
        if not direct:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
    except BaseException:
        os.close(fd)
        if made:
            os.unlink(path)
        raise
    if in_ram:
        way = "in RAM (tmpfs)"
    elif direct:
        way = f"O_DIRECT ({why})"
    else:
        way = f"through the page cache, which is dropped behind it (no O_DIRECT: {why})"
    lacks = ("" if reserved else ", not reserved") + ("" if locked else ", not locked")
    about = f"{how}, {format_size(size)}{lacks}, {way}"
    return SwapFile(fd, size, direct, why, in_ram, reserved, about)


def _in_use(path: str, by: str) -> OSError:
    return OSError(
        errno.EBUSY,
        f"swapfile is in use: it is {by}; accepted: a directory, or a file or device of its own",
        path,
    )


def _is_device(path: str) -> bool:
    return os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)


def _lock(fd: int) -> bool:
    """Lock a file for as long as anybody has the descriptor, the pager process included; False: no such thing here.

    Raises:
        BlockingIOError: somebody else has it locked.
    """
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return True  # by O_EXCL; udev locks devices too, for a moment
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # ENOLCK, EOPNOTSUPP, ENOSYS: some network file systems
        return False
    return True


def _kernel_use(path: str) -> str | None:
    """What the kernel uses a file or a device for, as far as it says."""
    found = os.stat(path)
    for line in _lines("/proc/swaps")[1:]:
        if _is_same(found, _unescape(line.split()[0])):
            return "a swap area of the kernel's"
    if stat.S_ISBLK(found.st_mode):
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        for line in _lines("/proc/self/mountinfo"):
            left, _, right = line.partition(" - ")
            fields, source = left.split(), right.split()
            if fields[2] == number or (
                len(source) > 1 and _is_same(found, _unescape(source[1]))
            ):  # the second of file systems that have numbers of their own, such as btrfs
                return f"mounted at {_unescape(fields[4])}"
    else:
        for device in glob.iglob("/sys/block/loop*/loop/backing_file"):
            if any(_is_same(found, name) for name in _lines(device)):
                return f"the file behind /dev/{device.split('/')[3]}"
    return None


def _is_same(found: os.stat_result, path: str) -> bool:
    try:
        other = os.stat(path)
    except OSError:
        return False
    if stat.S_ISBLK(found.st_mode):
        return stat.S_ISBLK(other.st_mode) and other.st_rdev == found.st_rdev
    return os.path.samestat(other, found)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _works(fd: int) -> tuple[bool, str]:
    """Does O_DIRECT do what it says, for what is aligned to ALIGN? And how that is known."""
    memory, offset = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    error = -lib.us_dio_align(fd, memory, offset)
    if error == 0:
        return _suffices(int(memory[0]), int(offset[0]))
    if error == errno.EOPNOTSUPP:
        return False, "the file system has none for this file"
    return _try(fd)


def _suffices(memory: int, offset: int) -> tuple[bool, str]:
    wanted = f"aligned to {offset} bytes in the file and {memory} in memory"
    if ALIGN % offset == 0 and ALIGN % memory == 0:
        return True, wanted
    return False, f"it must be {wanted}, and the file's format is to {ALIGN}"


def _try(fd: int) -> tuple[bool, str]:
    """Write and read what is aligned to ALIGN and to no more, and see that the page cache has none of it."""
    with mmap.mmap(-1, 4 * ALIGN) as memory:
        view = ffi.from_buffer(memory)
        first = int(ffi.cast("uintptr_t", view)) // ALIGN % 2 == 0
        del view
        at = ALIGN if first else 0
        out, back = slice(at, at + ALIGN), slice(at + 2 * ALIGN, at + 3 * ALIGN)
        memory[out] = os.urandom(ALIGN)
        whole = memoryview(memory)
        try:
            done = os.pwritev(fd, [whole[out]], ALIGN) + os.preadv(fd, [whole[back]], ALIGN)
            if done != 2 * ALIGN or memory[out] != memory[back]:
                return False, "a trial came out wrong"
        except OSError as e:
            return False, f"a trial failed, {errno.errorcode.get(e.errno or 0, e.errno)}"
        finally:
            whole.release()
    if lib.us_file_cached(fd, ALIGN, ALIGN) != 0:
        return False, "a trial went through the page cache"
    return True, "by trial"


def _open(path: str, flags: int) -> tuple[int, bool]:
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600), True
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    # The file system refuses O_DIRECT (and may have made the file before it said so).
    return os.open(path, flags if _is_device(path) else flags & ~os.O_EXCL, 0o600), False


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
    """Reserve the room; False where the file system can't, and the file is sparse."""
    error = -lib.us_file_reserve(fd, size)
    if error in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
        try:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
        except OSError as e:
            error = e.errno or errno.EIO
        else:
            if os.fstat(fd).st_size >= size:
                return False
            raise OSError(errno.EINVAL, "swapfile does not keep what is written to it", path)
    if error in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        why = f" ({limits.explain(error, 'fallocate')})" if error == errno.EFBIG else ""
        raise OSError(
            error,
            f"no room for a swap file of {format_size(size)}{why}; accepted: a smaller swap=",
            path,
        )
    if error:
        raise OSError(error, os.strerror(error), path)
    return True
