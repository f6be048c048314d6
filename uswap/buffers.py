# SPDX-License-Identifier: MIT
"""What can be paged where it lies, and where the memory of it is.

The kernel must be asked three things about a buffer before anything is changed: is the range mapped
without holes, is it private anonymous memory, is any of it locked. VmFlags in `/proc/self/smaps`
tells all three, and is not used: the kernel walks the page tables of every mapping that it prints,
and it prints them all from the first one on, so that each wrap would cost as much as the process is
large. Instead:

locked, holes
    `msync(MS_INVALIDATE)`. POSIX has it fail with EBUSY where a lock exists, and with ENOMEM at a
    hole; on private memory it does nothing else. It looks at mappings, never at pages.
kind of memory
    the `PROCMAP_QUERY` ioctl of `/proc/self/maps` (Linux 6.11), one mapping at a time; on older
    kernels the text of that file, read up to the end of the range.

In milliseconds, medians, 2 cores, Linux 6.18, a process with 4 GiB touched in 4 KiB pages:

    mappings in the process          5,000   60,000
    msync, one mapping               0.002    0.001
    PROCMAP_QUERY, one mapping       0.003    0.002
    locate() by PROCMAP_QUERY        0.02     0.02
    locate() by text                 6.6      47
    reading smaps, no parsing        65       318

Two things that only smaps would tell are found out later, by those who change something anyway:
whether the memory belongs to another userfaultfd (registering it is then refused with EBUSY, which
leaves no gap as a look beforehand would; `taken` words the refusal), and which advice on huge pages
it had (`forbid_hugepages`).

Refused too are buffers of Python objects (dtype object). They would page as others do, but to no
use: the objects, most of the memory, lie elsewhere and would stay in RAM; and to copy or free the
array is to count references, which swaps in all of it.

ctypes, not cffi, finds the address and makes the two system calls: cffi without a compiled module
imports its C parser, 34 ms against 2 in each process that starts a pager.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import mmap
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from uswap.errors import BufferRefusedError
from uswap.sizes import format_size

__all__ = [
    "Span",
    "describe",
    "export",
    "forbid_hugepages",
    "itemsize",
    "locate",
    "restore_hugepages",
    "taken",
    "wants_hugepages",
]

PAGE = mmap.PAGESIZE

ACCEPTED = (
    "writable, contiguous memory that is private to the process: numpy.ndarray,"
    " bytearray, array.array, a ctypes array, mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE |"
    " mmap.MAP_ANONYMOUS), or a memoryview of one"
)


@dataclasses.dataclass(frozen=True)
class Span:
    """The page-aligned inside of a buffer, and what lies around it."""

    address: int
    """Of the first whole page."""
    length: int
    """In bytes, whole pages; 0 when the buffer contains no whole page."""
    head: int
    """Bytes of the buffer before the first whole page. They stay ordinary memory."""
    tail: int
    """Bytes of the buffer after the last whole page. They stay ordinary memory."""
    hugepage_advice: bool | None = None
    """MADV_HUGEPAGE (True), MADV_NOHUGEPAGE (False) or none, before `forbid_hugepages`."""

    @classmethod
    def inside(cls, address: int, nbytes: int, page: int = PAGE) -> Span:
        """The whole pages among the `nbytes` bytes from `address` on."""
        first = -(-address // page) * page
        end = (address + nbytes) // page * page
        if end <= first:
            return cls(address=first, length=0, head=nbytes, tail=0)
        return cls(
            address=first, length=end - first, head=first - address, tail=address + nbytes - end
        )


# ---- the buffer ---------------------------------------------------------------------------------


def export(obj: object, name: str = "buffer") -> memoryview:
    """Hold the memory of `obj`, as one writable run of bytes.

    Until the view is released, whoever owns the memory can neither free nor resize it: bytearray,
    array.array and mmap.close() raise BufferError, numpy's resize() ValueError. Two calls do not
    look, and are the caller's to avoid: ctypes.resize(), and numpy's resize(refcheck=False).
    The bytes are in the order in which they lie, for an array in Fortran order too.

    Args:
        obj: whatever has the buffer protocol.
        name: of the argument, for messages.

    Raises:
        BufferRefusedError: `obj` has no buffer, or one that is read-only, not contiguous, or made
            of references to Python objects.
    """
    try:
        view = memoryview(obj)  # type: ignore[arg-type]  # Buffer has no name before Python 3.12
    except (TypeError, ValueError, BufferError, NotImplementedError) as e:
        # A TypeError says no more than that there is no buffer, which the next words do.
        why = (
            "it has no buffer" if isinstance(e, TypeError) else f"its buffer is not exported ({e})"
        )
        raise _refused(name, describe(obj), why, _instead_of(obj)) from e
    refusal: tuple[str, str]
    if view.readonly:
        refusal = "it is read-only", "pass a writable copy, e.g. bytearray(x) or numpy.array(x)"
    elif not view.contiguous:
        refusal = (
            "it is not contiguous: its elements do not lie in one run of memory",
            "pass the array it is a view of, or a copy by numpy.ascontiguousarray(x)",
        )
    elif "O" in re.sub(":[^:]*:", "", view.format):  # without the names of fields
        refusal = (
            "it holds references to Python objects, which lie elsewhere and would stay in RAM",
            "pass arrays of plain numbers or fixed-size strings",
        )
    else:
        # The one way to a flat view that takes Fortran order, which memoryview.cast() does not.
        return pickle.PickleBuffer(view).raw()
    view.release()
    raise _refused(name, describe(obj), *refusal)


def itemsize(obj: object) -> int:
    """Bytes of a number of a buffer, as it says of itself; 1 of plain bytes, 0 of a mixture.

    The buffer must be one that `export` takes.
    """
    with memoryview(obj) as view:  # type: ignore[arg-type]
        return view.itemsize if len(view.format.lstrip("@=<>!")) == 1 else 0


def describe(obj: object) -> str:
    """`obj` in a few words, e.g. ``ndarray float64 (4000, 4000), 122.1 MiB``, its bytes unread."""
    if isinstance(obj, memoryview):
        try:
            return f"memoryview of {_describe_view(obj)}"
        except ValueError:
            return "memoryview, released"
    words = [type(obj).__name__]
    dtype = _attribute(obj, "dtype")
    shape = _attribute(obj, "shape")
    if dtype is not None:
        words.append(str(getattr(dtype, "name", dtype)))
    elif isinstance(code := _attribute(obj, "typecode"), str):
        words.append(repr(code))
    if isinstance(shape, tuple):
        words.append(str(tuple(shape)))
    nbytes = _attribute(obj, "nbytes")
    if not isinstance(nbytes, int):
        try:
            with memoryview(obj) as view:  # type: ignore[arg-type]
                nbytes = view.nbytes
        except Exception:  # an exporter may raise what it likes; a message must not
            return " ".join(words)
    return f"{' '.join(words)}, {format_size(nbytes)}"


def _describe_view(view: memoryview) -> str:
    """The object behind a view; and the view's own size, where that is only a part."""
    owner: object = view
    while isinstance(owner, memoryview) and owner.obj is not None:
        owner = owner.obj
    if owner is view:
        return format_size(view.nbytes)
    whole = describe(owner)
    size = format_size(view.nbytes)
    return whole if whole.endswith(f", {size}") else f"{size} of {whole}"


def _instead_of(obj: object) -> str:
    """What to pass in the place of something that exports no buffer, as far as its type tells."""
    kind = type(obj)  # looked at in place of obj, whose __getattr__ may do what it likes
    itemsize = getattr(_attribute(obj, "dtype"), "itemsize", None)
    if hasattr(kind, "view") and hasattr(kind, "flags") and itemsize in (1, 2, 4, 8):
        return f'pass a view of the same memory as integers: x.view("i{itemsize}")'
    if hasattr(kind, "numpy"):
        return "pass the array that shares its memory: x.numpy() of a tensor on the CPU"
    if hasattr(kind, "buffers"):
        return "pass its buffers, one by one, if they are mutable: x.buffers()"
    if hasattr(kind, "to_numpy"):
        return "pass the array behind it, if x.to_numpy() does not copy"
    return ""


def _attribute(obj: object, name: str) -> Any:
    try:
        return getattr(obj, name, None)
    except Exception:  # a property may raise what it likes; a message must not
        return None


def _refused(name: str, what: str, why: str, instead: str = "") -> BufferRefusedError:
    """The error; `instead` is what to do or pass in this very case."""
    reason = f"{why}; {instead}" if instead else why
    return BufferRefusedError(f"{name} ({what})", reason, ACCEPTED)


# ---- its memory ---------------------------------------------------------------------------------


def locate(view: memoryview, *, block: int, name: str = "buffer") -> Span:
    """Find the whole pages of a buffer, and check that they can be paged. Changes nothing.

    Args:
        view: from `export`.
        block: bytes in a block of the region to be; the inside must have room for one.
        name: of the argument, for messages.

    Raises:
        BufferRefusedError: the buffer is too small, or its memory is shared, of a file or device,
            of hugetlbfs, the main stack, locked, protected or not mapped.
    """

    def refused(why: str, instead: str = "") -> BufferRefusedError:
        return _refused(name, _describe_view(view), why, instead)

    span = Span.inside(_address(view), view.nbytes)
    if span.length < block:
        raise refused(
            f"its whole pages are {format_size(span.length)}, less than a block ({format_size(block)})",
            "pass a larger buffer" + (f", or block={PAGE}" if block > PAGE else ""),
        )
    for m in _mappings(span.address, span.address + span.length):
        if m.name.startswith("/anon_hugepage"):
            raise refused("its memory is huge pages from hugetlbfs, which the kernel never swaps")
        if m.shared:
            raise refused(
                f"its memory is shared with other processes ({m.name or 'a shared mapping'})",
                "to mmap.mmap(-1, n), whose default is shared, pass flags=mmap.MAP_PRIVATE |"
                " mmap.MAP_ANONYMOUS; of other shared memory pass a copy",
            )
        if m.inode:
            raise refused(
                f"its memory is mapped from a file or device ({m.name})",
                "the kernel pages files by itself; else pass a copy, e.g. numpy.array(x)",
            )
        if m.name and m.name != "[heap]" and not m.name.startswith("[anon:"):
            raise refused(f"its memory is special ({m.name})")
        if not (m.readable and m.writable):
            raise refused(
                "part of its memory is protected against reading or writing", "undo the mprotect()"
            )
    error = _call("msync", span.address, span.length, _MS_INVALIDATE)
    if error == errno.EBUSY:
        raise refused("part of its memory is locked (mlock, mlockall)", "unlock it with munlock()")
    if error == errno.ENOMEM:
        raise refused("part of its address range is not mapped")
    if error:
        raise OSError(error, f"msync of {name}: {os.strerror(error)}")
    return span


def taken(view: memoryview, name: str = "buffer", *, by: str | None = None) -> BufferRefusedError:
    """The refusal of memory that registering found to belong to another userfaultfd (EBUSY).

    Args:
        view: from `export`.
        name: of the argument, for messages.
        by: the region that has it, and whose that is; None: none of this process's pagers.
    """
    why = "part of its memory is registered with another userfaultfd already"
    instead = "another tool in this process has it, and must let go of it first"
    if by is not None:
        why = f"part of its memory is paged already, by {by}"
        instead = "use that region, or release() it first"
    return _refused(name, _describe_view(view), why, instead)


def _address(view: memoryview) -> int:
    if not view.nbytes:
        return 0
    # ctypes takes C-contiguous exports only: flat ones.
    return ctypes.addressof(ctypes.c_char.from_buffer(pickle.PickleBuffer(view).raw()))


class _Mapping(NamedTuple):
    start: int
    end: int
    readable: bool
    writable: bool
    shared: bool
    inode: int
    name: str  # of a file, "[heap]" and the like, "" for most anonymous memory


def _mappings(start: int, end: int) -> Iterator[_Mapping]:
    """The mappings that overlap the range, in order. Holes are passed over."""
    with open("/proc/self/maps", "rb", buffering=1 << 16) as maps:
        query = _Query()
        while start < end:
            try:
                mapping = query.ask(maps.fileno(), start)
            except OSError as e:
                if e.errno == errno.ENOENT:
                    return
                yield from _read_mappings(maps, start, end)  # before Linux 6.11
                return
            if mapping.start >= end:
                return
            yield mapping
            start = mapping.end


class _Query(ctypes.Structure):
    """struct procmap_query of linux/fs.h."""

    _fields_ = [
        ("size", ctypes.c_uint64),
        ("query_flags", ctypes.c_uint64),
        ("query_addr", ctypes.c_uint64),
        ("vma_start", ctypes.c_uint64),
        ("vma_end", ctypes.c_uint64),
        ("vma_flags", ctypes.c_uint64),
        ("vma_page_size", ctypes.c_uint64),
        ("vma_offset", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("dev_major", ctypes.c_uint32),
        ("dev_minor", ctypes.c_uint32),
        ("vma_name_size", ctypes.c_uint32),
        ("build_id_size", ctypes.c_uint32),
        ("vma_name_addr", ctypes.c_uint64),
        ("build_id_addr", ctypes.c_uint64),
    ]

    def __init__(self) -> None:
        super().__init__(size=ctypes.sizeof(_Query), query_flags=_COVERING_OR_NEXT)
        self._name = ctypes.create_string_buffer(4096)  # PATH_MAX: the longest name there is
        self.vma_name_addr = ctypes.addressof(self._name)

    def ask(self, fd: int, address: int) -> _Mapping:
        """The mapping at `address`, or the first after it (ENOENT: there is none)."""
        self.query_addr = address
        self.vma_name_size = len(self._name)
        fcntl.ioctl(fd, _PROCMAP_QUERY, self)
        return _Mapping(
            start=self.vma_start,
            end=self.vma_end,
            readable=bool(self.vma_flags & 1),
            writable=bool(self.vma_flags & 2),
            shared=bool(self.vma_flags & 8),
            inode=self.inode,
            name=os.fsdecode(self._name.value) if self.vma_name_size else "",
        )


def _read_mappings(maps: Any, start: int, end: int) -> Iterator[_Mapping]:
    for line in maps:
        first, last, permissions, _offset, _device, inode, *rest = line.replace(
            b"-", b" ", 1
        ).split(maxsplit=6)
        if int(last, 16) <= start:
            continue
        if int(first, 16) >= end:
            return
        yield _Mapping(
            start=int(first, 16),
            end=int(last, 16),
            readable=permissions[0:1] == b"r",
            writable=permissions[1:2] == b"w",
            shared=permissions[3:4] == b"s",
            inode=int(inode),
            name=os.fsdecode(rest[0].rstrip(b"\n")) if rest else "",
        )


# ---- huge pages ---------------------------------------------------------------------------------


def forbid_hugepages(span: Span) -> Span:
    """Have the kernel put no huge pages into the span; returns it with the advice it had before.

    Call it when `locate` has refused nothing, and `restore_hugepages` if registering does.

    What the advice was is told by whether giving one changes anything: a page that had it already
    is left alone, any other is cut off from the page after it. Two pages are tried so, which takes
    as long as two looks at mappings; the call for the whole span then makes it one mapping again.
    """
    advice = None
    # One advice is kept for a span of several mappings (rare), that of the largest.
    whole = (span.address, span.address + span.length)
    parts = [(max(m.start, whole[0]), min(m.end, whole[1])) for m in _mappings(*whole)]
    start, end = max(parts, key=lambda part: part[1] - part[0], default=whole)
    if end - start >= 3 * PAGE:
        if not _advise_changes(start, _MADV_NOHUGEPAGE):
            advice = False
        elif not _advise_changes(start + PAGE, _MADV_HUGEPAGE):
            advice = True
    _advise(span.address, span.length, _MADV_NOHUGEPAGE)
    return dataclasses.replace(span, hugepage_advice=advice)


def wants_hugepages(span: Span) -> bool:
    """Whether a span from `forbid_hugepages` is to be advised MADV_HUGEPAGE when it is given back.

    Linux has no way back to no advice at all. Such memory gets the advice that does what the
    system's setting would have done: huge pages if that is "always", else none.
    """
    if span.hugepage_advice is None:
        return _hugepages_always()
    return span.hugepage_advice


def restore_hugepages(span: Span) -> None:
    """Undo `forbid_hugepages`, as far as that is possible (see `wants_hugepages`)."""
    if wants_hugepages(span):
        _advise(span.address, span.length, _MADV_HUGEPAGE)


def _hugepages_always() -> bool:
    try:
        return "[always]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False


def _advise_changes(page: int, advice: int) -> bool:
    """Advise one page; whether that cut the mapping it shares with the next page."""
    _advise(page, PAGE, advice)
    following = next(_mappings(page + PAGE, page + 2 * PAGE), None)
    return following is not None and following.start == page + PAGE


def _advise(address: int, length: int, advice: int) -> None:
    error = _call("madvise", address, length, advice)
    if error and error != errno.EINVAL:  # EINVAL: a kernel without huge pages
        raise OSError(error, f"madvise: {os.strerror(error)}")


# ---- system calls -------------------------------------------------------------------------------

_MS_INVALIDATE = 2
_MADV_HUGEPAGE = 14
_MADV_NOHUGEPAGE = 15
_PROCMAP_QUERY = 0xC0686611  # _IOWR('f', 17, struct procmap_query)
_COVERING_OR_NEXT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, address: int, length: int, flag: int) -> int:
    """0 or the errno of a libc function of the form f(void *, size_t, int)."""
    result = _libc[function](ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_int(flag))
    return ctypes.get_errno() if result else 0
