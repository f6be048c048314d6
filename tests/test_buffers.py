# SPDX-License-Identifier: MIT
"""What can be paged where it lies. Nothing here is ever paged: a look must change nothing."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import gc
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uswap import buffers
from uswap.buffers import Span, describe, export, locate
from uswap.errors import BufferRefusedError

PAGE = mmap.PAGESIZE
MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
HUGEPAGE, NOHUGEPAGE = 14, 15

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for two in (libc.mlock, libc.munlock, libc.munmap):
    two.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
for three in (libc.mprotect, libc.madvise):
    three.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@pytest.fixture(params=["ioctl", "text"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The mappings are asked for by ioctl, or, as if the kernel were older, read as text."""
    if request.param == "text":

        def missing(*_: object) -> None:
            raise OSError(errno.ENOTTY, "no such ioctl")

        monkeypatch.setattr(buffers._Query, "ask", missing)
    return str(request.param)


@pytest.fixture
def anonymous() -> Iterator[Any]:
    """16 pages of private anonymous memory, a ctypes array, between two pages without access."""
    outer = libc.mmap(None, 18 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, PRIVATE, -1, 0)
    for guard in (outer, outer + 17 * PAGE):
        assert libc.mprotect(guard, PAGE, 0) == 0
    yield (ctypes.c_char * (16 * PAGE)).from_address(outer + PAGE)
    libc.munmap(outer, 18 * PAGE)


def flags_of(address: int, length: int) -> list[tuple[int, int, set[str]]]:
    """Each mapping that overlaps the range, with its VmFlags, from smaps."""
    found: list[tuple[int, int, set[str]]] = []
    start = end = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word, *rest = line.split()
        if word == "VmFlags:":
            if start < address + length and end > address:
                found.append((start, end, set(rest)))
        elif not word.endswith(":"):
            start, end = (int(n, 16) for n in word.split("-"))
    return found


def refusal(obj: Any, *words: str, block: int = PAGE) -> str:
    """Both steps on `obj`, which must be refused in these words; its mappings stay as they are."""
    before = None
    try:
        with export(obj, "one") as held:
            address, length = buffers._address(held), held.nbytes
            before = flags_of(address, length)
            locate(held, block=block, name="one")
    except BufferRefusedError as e:
        text = str(e)
    else:
        pytest.fail("was not refused")
    if before is not None:
        assert flags_of(address, length) == before
    for word in ("one (", "accepted: writable, contiguous", "numpy.ndarray, bytearray", *words):
        assert word in text
    return text


# ---- accepted ------------------------------------------------------------------------------------

FLOATS: np.ndarray[Any, Any] = np.arange(MIB, dtype=np.float64)
KINDS: dict[str, Callable[[], Any]] = {
    "ndarray": lambda: np.arange(MIB, dtype=np.float64),
    "ndarray, huge pages advised": lambda: np.ones(64 * MIB, np.uint8),
    "ndarray in the heap": lambda: np.ones(100_000, np.uint8),
    "ndarray, Fortran order": lambda: np.asfortranarray(np.arange(MIB).reshape(1024, 1024)),
    "ndarray, big-endian": lambda: np.arange(MIB, dtype=">i4"),
    "ndarray, structured": lambda: np.zeros(MIB, [("O", "f8"), ("b", "i4")]),
    "ndarray, strings": lambda: np.full(MIB, "abc", "U5"),
    "ndarray, a slice": lambda: FLOATS[1001:-3],
    "ndarray, of a bytearray": lambda: np.frombuffer(bytearray(b"ab" * MIB), np.uint8),
    "bytearray": lambda: bytearray(b"ab" * MIB),
    "array.array": lambda: array.array("d", range(MIB)),
    "mmap, private": lambda: mmap.mmap(-1, MIB, flags=PRIVATE),
    "memoryview": lambda: memoryview(bytearray(b"ab" * MIB))[77:],
    "memoryview, Fortran order": lambda: memoryview(np.ones((512, 512)).T),
    "ctypes array": lambda: (ctypes.c_double * MIB)(*range(1000)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_accepted(kind: str, way: str) -> None:
    """The whole pages are found, the view is the object's memory, and nothing is changed."""
    obj = KINDS[kind]()
    with export(obj, "one") as held:
        assert not held.readonly
        assert held.format == "B"
        assert held.nbytes == memoryview(obj).nbytes
        address = buffers._address(held)
        before = flags_of(address, held.nbytes)
        span = locate(held, block=PAGE, name="one")
        assert flags_of(address, held.nbytes) == before
        assert span.hugepage_advice is None
        assert (span.address, span.length % PAGE) == (address + span.head, 0)
        assert span.head + span.length + span.tail == held.nbytes
        assert ctypes.string_at(span.address, PAGE) == held[span.head : span.head + PAGE]
        held[span.head] ^= 0xFF
        assert ctypes.string_at(span.address, 1)[0] == held[span.head]


def test_export_shows_the_memory_of_an_array() -> None:
    """The address is the array's own, not a copy's."""
    for a in (FLOATS, np.ones((300, 200), order="F"), np.ones((300, 200)).T):
        with export(a) as held:
            assert buffers._address(held) == a.ctypes.data


def test_named_anonymous_memory_is_accepted(anonymous: Any, way: str) -> None:
    """A name given with prctl, as allocators do, does not make memory special."""
    label = ctypes.create_string_buffer(b"arena")
    longs = [ctypes.c_ulong(n) for n in (0, ctypes.addressof(anonymous), len(anonymous))]
    libc.prctl(0x53564D41, *longs, label)  # PR_SET_VMA; kernels without names say EINVAL
    with export(anonymous) as held:
        assert locate(held, block=PAGE).length == len(anonymous)


def test_several_mappings_are_accepted(anonymous: Any, way: str) -> None:
    """A buffer may lie in several mappings, as long as there is no hole between them."""
    address = ctypes.addressof(anonymous)
    libc.madvise(address + 4 * PAGE, PAGE, HUGEPAGE)
    libc.mprotect(address + 8 * PAGE, PAGE, 7)  # executable as well
    with export(anonymous) as held:
        assert locate(held, block=16 * PAGE) == Span(address, 16 * PAGE, 0, 0)


def test_both_ways_see_the_same_mappings(anonymous: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ioctl and the text agree on limits, permissions, sharing, file and name."""
    address = ctypes.addressof(anonymous)
    libc.mprotect(address + PAGE, PAGE, 1)
    libc.mprotect(address + 2 * PAGE, PAGE, 5)
    with mmap.mmap(-1, 4 * PAGE) as shared:
        other = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        stack = next(m for m in buffers._mappings(0, 1 << 63) if m.name == "[stack]")
        ranges = [
            (address - PAGE, address + 17 * PAGE),
            (address + 100, address + PAGE + 1),
            (other, other + 1),
            (stack.start, stack.start + 1),
        ]
        by_ioctl = [list(buffers._mappings(*one)) for one in ranges]
        maps = Path("/proc/self/maps")
        for one, expected in zip(ranges, by_ioctl, strict=True):
            with maps.open("rb") as lines:
                assert list(buffers._read_mappings(lines, *one)) == expected
        assert [len(found) for found in by_ioctl] == [6, 2, 1, 1]
        assert by_ioctl[2][0].shared
        assert by_ioctl[2][0].inode
        assert "/dev/zero" in by_ioctl[2][0].name
        # Past the last mapping there is nothing, said in either way.
        monkeypatch.setattr(buffers._Query, "ask", buffers._Query.ask)
        assert list(buffers._mappings((1 << 64) - 2 * PAGE, (1 << 64) - PAGE)) == []


# ---- the export is held --------------------------------------------------------------------------


def test_bytearray_is_held() -> None:
    """A bytearray cannot grow while its export is held, and can again afterwards."""
    b = bytearray(MIB)
    held = export(b)
    locate(held, block=PAGE)
    with pytest.raises(BufferError):
        b.append(1)
    with pytest.raises(BufferError):
        b.clear()
    held.release()
    b.append(1)


def test_array_is_held() -> None:
    """Nor can an array.array."""
    a = array.array("d", bytes(MIB))
    held = export(a)
    locate(held, block=PAGE)
    with pytest.raises(BufferError):
        a.append(1)
    held.release()
    a.append(1)


def test_mmap_is_held() -> None:
    """An mmap can be neither closed nor resized."""
    m = mmap.mmap(-1, MIB, flags=PRIVATE)
    held = export(m)
    locate(held, block=PAGE)
    with pytest.raises(BufferError):
        m.close()
    with pytest.raises(BufferError):
        m.resize(2 * MIB)
    held.release()
    m.close()


def test_ndarray_is_held() -> None:
    """An ndarray cannot be resized, unless told not to look."""
    a = np.zeros(MIB)
    held = export(a)
    locate(held, block=PAGE)
    with pytest.raises(ValueError, match="resize"):
        a.resize(2 * MIB)
    held.release()


def test_memory_outlives_its_owner() -> None:
    """The memory stays when the last name of its owner is gone."""
    held = export(bytearray(b"x" * MIB))
    gc.collect()
    assert held[MIB - 1] == ord("x")


def test_release_of_a_given_memoryview_does_not_let_go() -> None:
    """The export holds by itself: whoever passed a memoryview may release it, or find it busy."""
    b = bytearray(MIB)
    view = memoryview(b)
    held = export(view)
    with contextlib.suppress(BufferError):
        view.release()
    with pytest.raises(BufferError):
        b.append(1)
    held.release()


# ---- refused by what it is -----------------------------------------------------------------------


def test_no_buffer() -> None:
    """A list has no buffer."""
    refusal([1, 2, 3], "one (list)", "it has no buffer")
    refusal("text", "one (str)", "it has no buffer")
    refusal(None, "one (NoneType)", "it has no buffer")


def test_hints_for_what_is_not_a_buffer() -> None:
    """What looks like a tensor, a series or an Arrow array is told what to pass instead."""

    class Tensor:
        dtype, shape, nbytes = "torch.float32", (3, 4), 48

        def numpy(self) -> None: ...

    class Series:
        def to_numpy(self) -> None: ...

    class Arrow(Series):
        def buffers(self) -> None: ...

    refusal(Tensor(), "one (Tensor torch.float32 (3, 4), 48 B)", "x.numpy()")
    refusal(Series(), "x.to_numpy()")
    refusal(Arrow(), "x.buffers()")


def test_dtypes_without_a_buffer() -> None:
    """numpy exports no datetimes; integers of the same memory are a view away."""
    times: np.ndarray[Any, Any] = np.zeros(MIB, "M8[s]")
    refusal(times, "datetime64", 'x.view("i8")')
    with export(times.view("i8")) as held:
        assert locate(held, block=PAGE).length


@pytest.mark.parametrize(
    "obj",
    [
        bytes(MIB),
        memoryview(bytes(MIB)),
        np.frombuffer(bytes(MIB)),
        memoryview(FLOATS).toreadonly(),
    ],
    ids=["bytes", "memoryview", "ndarray", "toreadonly"],
)
def test_read_only(obj: object) -> None:
    """Read-only buffers are refused, whoever made them so."""
    refusal(obj, "it is read-only", "bytearray(x)")


@pytest.mark.parametrize(
    "obj",
    [FLOATS[::2], FLOATS.reshape(1024, 1024)[:, 1:], FLOATS[::-1], memoryview(bytearray(MIB))[::2]],
    ids=["stride", "columns", "reversed", "memoryview"],
)
def test_not_contiguous(obj: object) -> None:
    """So are those with gaps, or the other way round."""
    refusal(obj, "it is not contiguous", "numpy.ascontiguousarray(x)")


@pytest.mark.parametrize(
    "obj",
    [
        np.full(MIB, "x", object),
        np.zeros(MIB, [("a", "f8"), ("b", object)]),
        (ctypes.py_object * MIB)(),
    ],
    ids=["ndarray", "structured", "ctypes"],
)
def test_objects(obj: object) -> None:
    """Buffers of references to Python objects are refused, fields of them too."""
    refusal(obj, "references to Python objects")


def test_nothing_is_held_after_a_refusal() -> None:
    """What export() or locate() refused can be resized and closed at once, by its owner."""
    b = bytearray(MIB)
    with pytest.raises(BufferRefusedError):
        export(memoryview(b)[::2])
    b.append(1)
    m = mmap.mmap(-1, MIB)
    refusal(m)
    m.close()


def test_released_memoryview() -> None:
    """A memoryview that was released has a description, and is refused."""
    view = memoryview(bytearray(10))
    view.release()
    refusal(view, "one (memoryview, released)")


# ---- refused by its memory -----------------------------------------------------------------------


def test_too_small(anonymous: Any) -> None:
    """The whole pages must have room for one block; the message says how large both are."""
    refusal(bytearray(10), "one (bytearray, 10 B)", "0 B", "less than a block (4 KiB)", block=4096)
    refusal(bytearray(0), "less than a block")
    text = refusal(anonymous, "64 KiB, less than a block (1 MiB)", f"block={PAGE}", block=MIB)
    assert "larger buffer" in text
    with export(anonymous) as held:
        assert locate(held, block=16 * PAGE).length == 16 * PAGE
        assert locate(held[: 4 * PAGE], block=4 * PAGE).length == 4 * PAGE
        with pytest.raises(BufferRefusedError, match="12 KiB, less than a block"):
            locate(held[1 : 4 * PAGE], block=4 * PAGE)


def test_shared_mmap(way: str) -> None:
    """The default of mmap.mmap(-1, n) is shared; the message has the flags that help."""
    with mmap.mmap(-1, MIB) as m:
        refusal(m, "one (mmap, 1 MiB)", "shared", "flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS")
        refusal(np.frombuffer(m, np.uint8), "shared")
        gc.collect()


def test_shared_memory(way: str) -> None:
    """Shared memory with a name, such as multiprocessing's, is refused by the same rule."""
    fd = os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE)
    os.ftruncate(fd, MIB)
    with mmap.mmap(fd, MIB) as m:
        os.close(fd)
        refusal(m, "shared", "/dev/shm/")


def test_private_file(tmp_path: Path, way: str) -> None:
    """Private mappings of files are refused by name: a clean page of theirs is the file's."""
    path = tmp_path / "data"
    path.write_bytes(bytes(MIB))
    refusal(np.memmap(path, np.uint8, mode="c"), "memmap uint8", "from a file or device", str(path))
    refusal(np.memmap(path, np.uint8, mode="r+"), "shared", str(path))
    refusal(np.memmap(path, np.uint8, mode="r"), "read-only")


def test_memfd_and_device(way: str) -> None:
    """So are private mappings of a memfd, and of /dev/zero."""
    for fd in (os.memfd_create("mine"), os.open("/dev/zero", os.O_RDWR)):
        if os.readlink(f"/proc/self/fd/{fd}") != "/dev/zero":
            os.ftruncate(fd, MIB)
        address = libc.mmap(None, MIB, 3, mmap.MAP_PRIVATE, fd, 0)
        os.close(fd)
        refusal((ctypes.c_char * MIB).from_address(address), "from a file or device (/")
        libc.munmap(address, MIB)


def test_hugetlbfs(anonymous: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of hugetlbfs is refused. (Machines have none set aside: a mapping is made up.)"""
    address = ctypes.addressof(anonymous)
    huge = buffers._Mapping(
        address, address + MIB, True, True, False, 7, "/anon_hugepage (deleted)"
    )
    monkeypatch.setattr(buffers, "_mappings", lambda *_: iter([huge]))
    refusal(anonymous, "hugetlbfs")


def test_main_stack(way: str) -> None:
    """The main thread's stack is no place for a paged buffer."""
    stack = next(m for m in buffers._mappings(0, 1 << 63) if m.name == "[stack]")
    part = (ctypes.c_char * (4 * PAGE)).from_address(stack.end - 4 * PAGE)
    refusal(part, "special ([stack])")


def test_locked(anonymous: Any, way: str) -> None:
    """One locked page anywhere in the range is enough; unlocked, it is accepted."""
    address = ctypes.addressof(anonymous)
    with export(anonymous) as held:
        for page in (0, 7, 15):
            assert libc.mlock(address + page * PAGE, PAGE) == 0
            assert "lo" in flags_of(address + page * PAGE, 1)[0][2]
            refusal(anonymous, "locked", "munlock()")
            assert libc.munlock(address + page * PAGE, PAGE) == 0
            assert locate(held, block=PAGE).length == 16 * PAGE


def test_lock_beside_the_range_does_not_count(anonymous: Any) -> None:
    """Locked neighbours, and a locked page that holds only the buffer's head, do not matter."""
    address = ctypes.addressof(anonymous)
    assert libc.mlock(address, PAGE) == 0
    with export(anonymous) as held:
        assert locate(held[100:], block=PAGE).head == PAGE - 100
    assert libc.munlock(address, PAGE) == 0


@pytest.mark.parametrize("protection", [0, mmap.PROT_READ, mmap.PROT_WRITE])
def test_protected(anonymous: Any, way: str, protection: int) -> None:
    """Memory that cannot be read and written is refused, whatever its export says."""
    libc.mprotect(ctypes.addressof(anonymous) + 9 * PAGE, PAGE, protection)
    refusal(anonymous, "protected", "mprotect()")


@pytest.mark.parametrize("page", [0, 9, 15])
def test_hole(anonymous: Any, way: str, page: int) -> None:
    """A range with a hole is refused, at either end too."""
    libc.munmap(ctypes.addressof(anonymous) + page * PAGE, PAGE)
    refusal(anonymous, "not mapped")
    # Nothing else may have moved in meanwhile, or the fixture would take it away.
    libc.mmap(ctypes.addressof(anonymous) + page * PAGE, PAGE, 3, PRIVATE | 0x100000, -1, 0)


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that msync is not known for is raised as what it is."""
    monkeypatch.setattr(buffers, "_call", lambda *_: errno.EIO)
    with export(FLOATS) as held, pytest.raises(OSError, match="msync of one") as e:
        locate(held, block=PAGE, name="one")
    assert e.value.errno == errno.EIO


def test_taken() -> None:
    """The refusal that registering finds has the same form."""
    with export(FLOATS) as held:
        text = str(buffers.taken(held, "one"))
    assert "one (ndarray float64 (1048576,), 8 MiB)" in text
    assert "another userfaultfd already; another tool in this process has it" in text
    with export(FLOATS) as held:
        text = str(buffers.taken(held, "one", by="<region 3> of this pager"))
    assert "paged already, by <region 3> of this pager; use that region, or release() it" in text


# ---- arithmetic ----------------------------------------------------------------------------------


@given(
    address=st.integers(0, 1 << 56),
    nbytes=st.integers(0, 1 << 48) | st.integers(0, 1 << 18),
    page=st.sampled_from([1 << 12, 1 << 14, 1 << 16]),
)
def test_span_is_the_largest_aligned_inside(address: int, nbytes: int, page: int) -> None:
    """Head, whole pages and tail make up the buffer; neither end has room for one more page."""
    span = Span.inside(address, nbytes, page)
    assert span.head + span.length + span.tail == nbytes
    assert min(span.head, span.length, span.tail) >= 0
    assert span.length % page == span.address % page == 0
    if span.length:
        assert span.address == address + span.head
        assert max(span.head, span.tail) < page
    else:
        first = address + -address % page
        assert first + page > address + nbytes


MEMORY = mmap.mmap(-1, 64 * PAGE, flags=PRIVATE)


@given(
    start=st.integers(0, 8 * PAGE) | st.sampled_from([0, 1, PAGE - 1, PAGE]),
    end=st.integers(8 * PAGE, 64 * PAGE) | st.sampled_from([16 * PAGE - 1, 16 * PAGE]),
    block=st.sampled_from([1, 2, 4, 8, 16]).map(lambda n: n * PAGE),
)
def test_a_block_must_fit(start: int, end: int, block: int) -> None:
    """locate() refuses exactly the buffers without room for a block."""
    pages = end // PAGE - -(-start // PAGE)
    with memoryview(MEMORY) as whole, export(whole[start:end]) as held:
        if pages * PAGE >= block:
            span = locate(held, block=block)
            assert (span.length, span.head) == (pages * PAGE, -start % PAGE)
        else:
            with pytest.raises(BufferRefusedError, match="less than a block"):
                locate(held, block=block)


# ---- huge pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("advice", [None, HUGEPAGE, NOHUGEPAGE])
def test_forbid_and_restore_hugepages(anonymous: Any, way: str, advice: int | None) -> None:
    """The advice is found out, replaced, and given back; the span is one mapping all the while."""
    address, length = ctypes.addressof(anonymous), len(anonymous)
    if advice is not None:
        libc.madvise(address, length, advice)
    (before,) = flags_of(address, length)
    with export(anonymous) as held:
        span = locate(held, block=PAGE)
        quiet = buffers.forbid_hugepages(span)
    had = True if "hg" in before[2] else False if "nh" in before[2] else None
    assert quiet == Span(span.address, span.length, span.head, span.tail, had)
    (during,) = flags_of(address, length)
    assert during[:2] == before[:2]
    assert "hg" not in during[2]
    buffers.restore_hugepages(quiet)
    (after,) = flags_of(address, length)
    if had is not None:
        assert after == before


@pytest.mark.parametrize("first", [0, 5])
def test_advice_is_that_of_the_largest_mapping(anonymous: Any, way: str, first: int) -> None:
    """Of several mappings the largest decides, wherever it lies."""
    address = ctypes.addressof(anonymous)
    libc.madvise(address + first * PAGE, 11 * PAGE, HUGEPAGE)
    had = True if "hg" in flags_of(address + 8 * PAGE, 1)[0][2] else None
    with export(anonymous) as held:
        assert buffers.forbid_hugepages(locate(held, block=PAGE)).hugepage_advice is had


def test_forbid_hugepages_in_two_pages(anonymous: Any) -> None:
    """Too few pages to tell, and to matter: no advice is known, and none is lost to neighbours."""
    address = ctypes.addressof(anonymous)
    libc.madvise(address, len(anonymous), HUGEPAGE)
    before = flags_of(address + 2 * PAGE, PAGE)[0][2]
    with export(anonymous) as held:
        quiet = buffers.forbid_hugepages(locate(held[: 2 * PAGE], block=PAGE))
    assert quiet.hugepage_advice is None
    assert "hg" not in flags_of(address, PAGE)[0][2]
    assert flags_of(address + 2 * PAGE, PAGE)[0][2] == before


@pytest.mark.parametrize("setting", ["[always] madvise never", "always [madvise] never", None])
def test_memory_without_advice_gets_what_the_system_has(
    monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    """No advice cannot be given back: the system's setting decides instead."""

    def read_text(_: Path) -> str:
        if setting is None:
            raise FileNotFoundError
        return setting

    monkeypatch.setattr(Path, "read_text", read_text)
    span = Span(0, PAGE, 0, 0)
    assert buffers.wants_hugepages(span) == (setting is not None and "[always]" in setting)
    assert buffers.wants_hugepages(Span(0, PAGE, 0, 0, True))
    assert not buffers.wants_hugepages(Span(0, PAGE, 0, 0, False))


def test_kernel_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where madvise knows no such advice there is nothing to forbid; other errors are raised."""
    span = Span.inside(*_address_and_size(FLOATS))
    monkeypatch.setattr(buffers, "_call", lambda *_: errno.EINVAL)
    buffers._advise(span.address, span.length, NOHUGEPAGE)
    monkeypatch.setattr(buffers, "_call", lambda *_: errno.ENOMEM)
    with pytest.raises(OSError, match="madvise"):
        buffers._advise(span.address, span.length, NOHUGEPAGE)


def _address_and_size(a: np.ndarray[Any, Any]) -> tuple[int, int]:
    return a.ctypes.data, a.nbytes


# ---- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (np.zeros((4000, 4000)), "ndarray float64 (4000, 4000), 122.1 MiB"),
        (np.float32(1), "float32 float32 (), 4 B"),
        (bytearray(MIB), "bytearray, 1 MiB"),
        (array.array("d", [1, 2]), "array 'd', 16 B"),
        ((ctypes.c_char * 2048)(), "c_char_Array_2048, 2 KiB"),
        (memoryview(np.zeros((64, 2))), "memoryview of ndarray float64 (64, 2), 1 KiB"),
        (memoryview(bytearray(4096))[:10], "memoryview of 10 B of bytearray, 4 KiB"),
        ([], "list"),
        (None, "NoneType"),
    ],
)
def test_describe(obj: object, words: str) -> None:
    """Type, kind of element, shape and size, as far as there are any."""
    assert describe(obj) == words


def test_describe_survives_what_raises() -> None:
    """An object whose attributes raise is described by its type."""

    class Odd:
        def __getattr__(self, name: str) -> None:
            raise RuntimeError(name)

    assert describe(Odd()) == "Odd"
    refusal(Odd(), "one (Odd)")
