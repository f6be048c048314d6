# SPDX-License-Identifier: MIT
"""Read a swap file, of a pager that lives or was killed, and say what is in it.

A swap file explains itself (``csrc/segment.h`` draws it), but which objects are in use is known only
to the pager's table. From the file alone it can be said which is the newest copy of an entry: of two
copies the one in the segment of the higher sequence number. That one is called live, though its block
may have been written to or freed since; the others are dead.

A file may still hold segments of a former run, where the present one has not written yet. They are told
apart by the run's random number, counted as stale, and play no part otherwise. The present run is the one
whose header stands in the first segment, which a run writes first.

A live pager may write to a segment while it is read. So one that looks bad is read again.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ._core import ffi, lib
from .errors import UswapError
from .paths import SWAP_MAGIC as MAGIC
from .paths import open_to_read, what_it_is
from .sizes import format_size

__all__ = ["NotASwapFile", "Report", "Segment", "check"]

ALIGN = 4096
ACCEPTED = (
    "the file or device that a pager has as its swapfile=; /proc/PID/fd/N of the pager process PID "
    "for one without a name"
)
SEARCH = 64 << 20
"""Bytes in which the first header is looked for: the first segment may have been retired."""
LARGEST = 1 << 30
OBJECT_HEADER = 32
TRIES = 3
IN_FLIGHT = 8
"""How many of the newest segments may have been cut off by the pager's end."""


class NotASwapFile(UswapError):
    """Nothing of a uswap swap file was found in the file."""


@dataclasses.dataclass
class Segment:
    """One segment that has been written."""

    id: int
    state: str
    """``ok``; ``bad`` if an object or the header is; ``stale`` if it is a former run's."""
    sequence: int = 0
    used: int = 0
    """Bytes from its start to the end of its last object."""
    objects: int = 0
    live: int = 0
    dead: int = 0
    shuffled: int = 0
    """Objects whose bytes or bits were shuffled before they were compressed."""
    bad: int = 0
    """Objects whose checksum is wrong, and those that are missing."""
    unknown: int = 0
    """Objects that are as they were written, but by a codec or filter that this version does not have."""
    live_bytes: int = 0
    """Of its newest copies, with their headers."""
    problem: str | None = None


@dataclasses.dataclass
class Report:
    """What is in a swap file. Sizes in bytes."""

    path: str
    size: int
    segment_size: int
    space: int
    """The present run's number."""
    segments: list[Segment]
    unwritten: int
    """Segments that nothing was ever written to, or that do not fit into the file."""

    @property
    def current(self) -> list[Segment]:
        """The segments of the present run."""
        return [segment for segment in self.segments if segment.state != "stale"]

    @property
    def bad(self) -> int:
        """Bad objects and those of an unknown codec, a bad header counting as one."""
        return sum(max(s.bad + s.unknown, 1) for s in self.segments if s.state == "bad")

    def total(self, field: str) -> int:
        """Return the sum of a number over the present run's segments."""
        return sum(getattr(segment, field) for segment in self.current)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can carry."""
        names = ("used", "objects", "live", "dead", "live_bytes")
        return {
            "path": self.path,
            "size": self.size,
            "segment_size": self.segment_size,
            "space": f"{self.space:016x}",
            "written": len(self.current),
            "stale": len(self.segments) - len(self.current),
            "unwritten": self.unwritten,
            "total": {name: self.total(name) for name in names} | {"bad": self.bad},
            "segments": [dataclasses.asdict(segment) for segment in self.segments],
        }


class _Header(NamedTuple):
    """What a segment's header says, and what was found behind it."""

    error: int
    """0 or an errno."""
    space: int
    sequence: int
    version: int
    id: int
    segment_size: int
    used: int
    objects: int
    bad: int
    found: int
    """Entries of the reader's array."""


class _Reader:
    """Reads one segment after the other into the same buffers."""

    def __init__(self, fd: int, size: int, segment_size: int) -> None:
        self.size = size
        self._fd = fd
        self._segment_size = segment_size
        self._most = segment_size // OBJECT_HEADER
        self._buffer = ffi.new("uint64_t[]", segment_size // 8)
        self._view = memoryview(ffi.buffer(self._buffer))
        self._seg = ffi.new("us_fsck_seg_t *")
        self.objects = ffi.new("us_fsck_obj_t[]", self._most)

    def read(self, off: int) -> _Header:
        """Read the segment at `off`: the page with its header, and the rest only if there is one."""
        got = _read(self._fd, self._view[:ALIGN], off)
        if bytes(self._view[: len(MAGIC)]) == MAGIC and got == ALIGN:
            got += _read(self._fd, self._view[ALIGN:], off + ALIGN)
        found = lib.us_fsck_segment(self._buffer, got, off, self.objects, self._most, self._seg)
        seg = self._seg
        return _Header(
            error=-min(found, 0),
            space=seg.space,
            sequence=seg.sequence,
            version=seg.version,
            id=seg.id,
            segment_size=seg.segment_size,
            used=seg.used,
            objects=seg.objects,
            bad=seg.bad,
            found=max(found, 0),
        )


class _Newest:
    """Of each entry the newest copy: where it is, and what it takes."""

    def __init__(self) -> None:
        self._sequence = array("Q")  # 0: none
        self._index = array("I")
        self._bytes = array("I")

    def add(self, entry: int, sequence: int, index: int, size: int) -> tuple[int, int] | None:
        """Note a copy and return the index and size of the one that loses; None at the first."""
        if entry >= len(self._sequence):
            more = max(entry + 1, 2 * len(self._sequence)) - len(self._sequence)
            for one in (self._sequence, self._index, self._bytes):
                one.frombytes(bytes(more * one.itemsize))
        if not self._sequence[entry]:
            loser = None
        elif sequence < self._sequence[entry]:
            return index, size
        else:
            loser = self._index[entry], self._bytes[entry]
        self._sequence[entry] = sequence
        self._index[entry] = index
        self._bytes[entry] = size
        return loser


def check(
    path: str | os.PathLike[str], progress: Callable[[str, float], None] | None = None
) -> Report:
    """Read the whole file and return what is in it.

    Args:
        path: the swap file or block device; ``/proc/PID/fd/N`` for one that has no name any more.
        progress: called with what is being done and the part that is done, from 0 to 1.

    Raises:
        NotASwapFile: no segment of a swap file was found.
        OSError: the file cannot be read.
    """
    fd = open_to_read(os.fspath(path), ACCEPTED)
    try:
        return _check(fd, os.fspath(path), progress or (lambda _text, _part: None))
    finally:
        os.close(fd)


def _check(fd: int, path: str, progress: Callable[[str, float], None]) -> Report:
    size = os.lseek(fd, 0, os.SEEK_END)
    first = _first_header(fd, size)
    if first is None:
        searched = f"the first {format_size(SEARCH)}" if size > SEARCH else "it"
        found = what_it_is(
            os.pread(fd, len(MAGIC), 0),
            MAGIC,
            f"is no swap file, or one that nothing was written to yet: {searched} holds no segment (a "
            "pager writes when its pool is nearly full)",
        )
        raise NotASwapFile(f"{path} {found}; accepted: {ACCEPTED}")
    reader = _Reader(fd, size, first.segment_size)
    report = Report(path, size, first.segment_size, first.space, [], 0)
    newest = _Newest()
    for number, off in enumerate(range(0, size, first.segment_size)):
        if number % 16 == 0:
            progress("reading", off / size)
        header = _read_again_if_bad(reader, off)
        if header.error == errno.ENODATA:
            report.unwritten += 1
            continue
        segment = _judge(number, header, first)
        report.segments.append(segment)
        if segment.state != "stale" and not header.error:
            _count(report.segments, reader, header, newest)
            _judge_codecs(segment, reader, header)
    last = max((segment.sequence for segment in report.current), default=0)
    for segment in report.current:
        if segment.bad and segment.sequence > last - IN_FLIGHT:
            segment.problem = f"{segment.problem}, or its write was cut off"
    return report


def _first_header(fd: int, size: int) -> _Header | None:
    """Return the first good header, which says how large segments are."""
    for off in range(0, min(size, SEARCH), ALIGN):
        page = bytearray(ALIGN)
        if _read(fd, memoryview(page), off) < ALIGN:
            break
        if not page.startswith(MAGIC):
            continue
        header = _Reader(fd, size, ALIGN).read(off)
        fits = ALIGN <= header.segment_size <= LARGEST and header.segment_size % ALIGN == 0
        if not header.error and fits:
            return header
    return None


def _read_again_if_bad(reader: _Reader, off: int) -> _Header:
    for _ in range(TRIES - 1):
        header = reader.read(off)
        if header.error in (0, errno.ENODATA) and not header.bad:
            return header
        time.sleep(0.02)  # a write of a segment takes less
    return reader.read(off)


def _judge(number: int, header: _Header, first: _Header) -> Segment:
    segment = Segment(number, "ok", header.sequence, header.used, header.objects, bad=header.bad)
    if header.error and header.version != first.version:
        segment.problem = f"version {header.version}"
    elif header.error:
        segment.problem = "bad header"
    elif header.space != first.space or header.segment_size != first.segment_size:
        segment.state = "stale"
        return segment
    elif header.bad:
        segment.problem = f"bad objects: {header.bad}"
    if segment.problem is not None:
        segment.state = "bad"
    if header.error:  # none of its numbers can be trusted
        segment.sequence = segment.used = segment.objects = segment.bad = 0
    return segment


def _count(segments: list[Segment], reader: _Reader, header: _Header, newest: _Newest) -> None:
    index = len(segments) - 1
    segment = segments[index]
    for one in _good(reader, header):
        size = OBJECT_HEADER + one.length
        segment.live += 1
        segment.live_bytes += size
        loser = newest.add(one.entry, header.sequence, index, size)
        if loser is not None:
            other, lost = loser
            segments[other].live -= 1
            segments[other].dead += 1
            segments[other].live_bytes -= lost


def _judge_codecs(segment: Segment, reader: _Reader, header: _Header) -> None:
    """No pager of this version could read what has an unknown codec, though it is as it was written."""
    unknown = [one.codec for one in _good(reader, header) if not one.known]
    segment.shuffled = sum(one.known and one.filtered for one in _good(reader, header))
    if unknown:
        segment.state = "bad"
        segment.unknown = len(unknown)
        names = ", ".join(f"{codec:#04x}" for codec in sorted(set(unknown)))
        problem = f"objects of an unknown codec or filter: {len(unknown)} ({names})"
        segment.problem = f"{segment.problem}; {problem}" if segment.problem else problem


def _good(reader: _Reader, header: _Header) -> Iterator[Any]:
    for i in range(header.found):
        if reader.objects[i].ok:
            yield reader.objects[i]


def _read(fd: int, into: memoryview, off: int) -> int:
    """Fill `into` from `off` on and return how many bytes there were."""
    got = 0
    while got < len(into):
        n = os.preadv(fd, [into[got:]], off + got)
        if n == 0:
            break
        got += n
    return got
