# SPDX-License-Identifier: MIT
"""The file of a trace: made here by the client, filled by the pager (``csrc/trace.c``), read here.

``csrc/trace.h`` draws it: a header, then records of 16 bytes in the order in which things were done. A
file may end anywhere, since it can be read while it is written, and a pager can be killed.

What a trace shows are faults, so misses of the policy that was in force: an access to a block that was
resident left nothing behind. To see (nearly) every access, record with a limit of few blocks: what is
then hidden are accesses to a block among the last few that were touched, which any policy with more room
serves from RAM (deleting such accesses from a trace hardly changes the misses of larger memories:
A. J. Smith, "Two Methods for the Efficient Analysis of Memory Address Trace Data", 1977).
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import os
import struct
import time
from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

from .._core import lib
from ..errors import UswapError
from ..paths import TRACE_MAGIC as MAGIC
from ..paths import open_to_read, what_it_is
from ..stats import KINDS

__all__ = [
    "HEADER",
    "MAGIC",
    "RECORD",
    "NotATrace",
    "Region",
    "Trace",
    "TraceFile",
    "create",
    "read",
]

ACCEPTED = "a file that a pager with trace=FILE, or USWAP_TRACE=FILE, has written"
HEADER = struct.Struct("<8sIIQQQI20x")
"""Magic, version, bytes of the header, monotonic and real time in ns, limit in bytes, process."""
RECORD = struct.Struct("<BBHIQ")
"""What, flags, 0, entry, when."""
PIECE = 1 << 16  # records that are read at once

AHEAD, OUT = int(lib.US_TRACE_AHEAD), int(lib.US_TRACE_OUT)
REGION, MORE = int(lib.US_TRACE_REGION), int(lib.US_TRACE_MORE)
GONE, MISSED = int(lib.US_TRACE_GONE), int(lib.US_TRACE_MISSED)
PRESENT = KINDS.index("present")


class NotATrace(UswapError):
    """The file is no trace, or none that this version can read; the message says why."""


# ---- writing


class TraceFile:
    """A new trace, open, with its header written. A context manager.

    Leaving it closes the file; leaving it by an exception removes it too, since nothing was recorded.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.fd)
        if error is not None:
            os.unlink(self.path)


def create(path: str, *, limit: int) -> TraceFile:
    """Make the file of a trace.

    Args:
        path: a path at which there is nothing yet; or a directory, in which the file is named after
            the process.
        limit: bytes that may be resident, for the header.

    Raises:
        FileExistsError: there is a file already.
        OSError: it can't be made or written; names the path.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if os.path.isdir(path):
        fd, path = _in_directory(path, flags)
    else:
        try:
            fd = os.open(path, flags, 0o600)
        except FileExistsError as e:
            raise FileExistsError(
                e.errno, "trace exists; accepted: a new path, or a directory", path
            ) from None
    with contextlib.ExitStack() as undo:
        file = undo.enter_context(TraceFile(path, fd))
        try:
            with open(fd, "wb", closefd=False) as out:
                out.write(
                    HEADER.pack(
                        MAGIC,
                        lib.US_TRACE_VERSION,
                        HEADER.size,
                        time.monotonic_ns(),
                        time.time_ns(),
                        limit,
                        os.getpid(),
                    )
                )
        except OSError as e:
            e.filename = path
            raise
        undo.pop_all()
    return file


def _in_directory(directory: str, flags: int) -> tuple[int, str]:
    for number in itertools.count():
        path = os.path.join(directory, f"uswap-{os.getpid()}-{number}.trace")
        with contextlib.suppress(FileExistsError):
            return os.open(path, flags, 0o600), path
    raise AssertionError("unreachable")


# ---- reading


@dataclasses.dataclass
class Region:
    """A region that was paged while the trace was written.

    Attributes:
        id: the pager's number for it; given anew when it is gone.
        block, length: bytes.
        blocks: how many.
        base: number of its first block among the blocks of all regions of the trace.
        added, removed: ns from the trace's start; None: it was there to the end.
    """

    id: int
    block: int
    length: int
    blocks: int
    address: int
    base: int
    added: int
    removed: int | None = None


@dataclasses.dataclass
class Trace:
    """What a file holds. Records stand in the order in which things were done.

    Attributes:
        version: of the format.
        limit: bytes that might be resident.
        pid: of the process that was traced.
        started: real time, ns since 1970.
        what: of each record about a block, its kind of fault (an index of KINDS), AHEAD or OUT.
        flags: the same: of a fault 1 for a write; of OUT 1 for a block that was dropped as it was clean.
        blocks: the same: the block's number, from 0 on; each region has its own, see Region.base.
        when: the same: ns from the start. Of a fault when the pager saw it, so not quite in order.
        missed: records that found no room in the pager's buffer.
        homeless: records about blocks of no region; there are none unless some are missed.
        cut: the file ends within a record.
    """

    path: str
    version: int
    limit: int
    pid: int
    started: int
    regions: list[Region] = dataclasses.field(default_factory=list)
    what: bytearray = dataclasses.field(default_factory=bytearray)
    flags: bytearray = dataclasses.field(default_factory=bytearray)
    blocks: array[int] = dataclasses.field(default_factory=lambda: array("Q"))
    when: array[int] = dataclasses.field(default_factory=lambda: array("Q"))
    missed: int = 0
    homeless: int = 0
    cut: bool = False

    @property
    def faults(self) -> dict[str, int]:
        """Faults by kind (see uswap.stats.KINDS)."""
        return {kind: self.what.count(number) for number, kind in enumerate(KINDS)}

    @property
    def seconds(self) -> float:
        """From the start to the last record."""
        return max(self.when, default=0) / 1e9

    def accesses(self, region: int | None = None) -> array[int]:
        """Return the numbers of the blocks in the order in which they were accessed.

        That is each fault, and each block that read-ahead swapped in; but not a fault that found the block
        there ("present"), as it stands beside the one that swapped it in. A block that is accessed several
        times in a row is there once, so a write that follows a read does not count as a second access.

        Args:
            region: only blocks of the region at this index.
        """
        first, last = 0, 2**64
        if region is not None:
            first = self.regions[region].base
            last = first + self.regions[region].blocks
        out: array[int] = array("Q")
        before = -1
        for what, block in zip(self.what, self.blocks, strict=True):
            if block != before and what <= AHEAD and what != PRESENT and first <= block < last:
                out.append(block)
                before = block
        return out


def read(path: str | os.PathLike[str]) -> Trace:
    """Read a trace; the pager may be writing to it still.

    Raises:
        NotATrace: it is another file, one of another version, or damaged.
        OSError: it can't be read.
    """
    name = os.fspath(path)
    with open(open_to_read(name, ACCEPTED), "rb") as file:
        head = file.read(HEADER.size)
        if head[: len(MAGIC)] != MAGIC:
            found = what_it_is(head, MAGIC, "is not a trace, but another kind of file")
            raise NotATrace(f"{name} {found}; accepted: {ACCEPTED}")
        if len(head) < HEADER.size:
            raise NotATrace(f"{name} ends within its header, after {len(head)} bytes")
        _magic, version, size, began, started, limit, pid = HEADER.unpack(head)
        if version != lib.US_TRACE_VERSION or size != HEADER.size:
            raise NotATrace(
                f"{name} is a trace of version {version} with a header of {size} bytes; accepted: version "
                f"{int(lib.US_TRACE_VERSION)} with {HEADER.size}"
            )
        trace = Trace(name, version, limit, pid, started)
        _Reader(trace, began).read(_records(file, trace))
    return trace


def _records(file: BinaryIO, trace: Trace) -> Iterator[tuple[int, int, int, int, int]]:
    while piece := file.read(PIECE * RECORD.size):
        if rest := len(piece) % RECORD.size:
            trace.cut = True
            piece = piece[:-rest]
        yield from RECORD.iter_unpack(piece)


class _Reader:
    """Keeps account of which region an entry belongs to."""

    def __init__(self, trace: Trace, began: int) -> None:
        self._trace = trace
        self._began = began
        self._first: list[int] = []  # entry of each region that is there, in order
        self._there: list[Region] = []
        self._blocks = 0
        self._number = 0

    def read(self, records: Iterator[tuple[int, int, int, int, int]]) -> None:
        """Take all records."""
        trace, began, kinds = self._trace, self._began, len(KINDS)
        what_add, flags_add = trace.what.append, trace.flags.append
        blocks_add, when_add = trace.blocks.append, trace.when.append
        low = high = shift = 0  # the region of the entry before: low <= entry < high
        for what, flags, _zero, entry, when in records:
            self._number += 1
            if what < kinds or what in (AHEAD, OUT):
                if not low <= entry < high:
                    low, high, shift = self._find(entry)
                    if low == high:
                        trace.homeless += 1
                        continue
                what_add(what)
                flags_add(flags)
                blocks_add(entry + shift)
                when_add(max(when - began, 0))
            elif what == REGION:
                self._add(entry, flags, when, records)
                low = high = 0
            elif what == GONE:
                self._remove(entry, when)
                low = high = 0
            elif what == MISSED:
                trace.missed += entry
            else:
                raise self._damaged(f"is of no kind there is ({what})")

    def _damaged(self, how: str) -> NotATrace:
        return NotATrace(f"{self._trace.path} is damaged: record {self._number} {how}")

    def _find(self, entry: int) -> tuple[int, int, int]:
        """First and end of the region's entries, and what makes an entry a block's number."""
        k = bisect.bisect_right(self._first, entry) - 1
        if k < 0 or entry >= self._first[k] + self._there[k].blocks:
            return 0, 0, 0
        first, region = self._first[k], self._there[k]
        return first, first + region.blocks, region.base - first

    def _add(
        self,
        first: int,
        shift: int,
        when: int,
        records: Iterator[tuple[int, int, int, int, int]],
    ) -> None:
        more = list(itertools.islice(records, 2))
        self._number += len(more)
        if len(more) < 2:  # the file ends here
            self._trace.cut = True
            return
        (what, _, _, number, length), (last, _, _, blocks, address) = more
        if what != MORE or last != MORE:
            raise self._damaged("should say more of a region")
        if not 12 <= shift <= 21 or -(-length >> shift) != blocks:
            raise self._damaged(
                f"is of a region of {length} bytes in {blocks} blocks of 2**{shift}"
            )
        region = Region(
            number, 1 << shift, length, blocks, address, self._blocks, max(when - self._began, 0)
        )
        self._blocks += blocks
        self._trace.regions.append(region)
        at = bisect.bisect(self._first, first)
        self._first.insert(at, first)
        self._there.insert(at, region)

    def _remove(self, first: int, when: int) -> None:
        if first in self._first:  # else its beginning was missed
            at = self._first.index(first)
            self._there[at].removed = max(when - self._began, 0)
            del self._first[at], self._there[at]
