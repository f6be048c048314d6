# SPDX-License-Identifier: MIT
"""Regions: memory that a pager pages.

An OwnRegion is memory made for the purpose. It is a subclass of mmap.mmap, which is the one type of the
standard library that can be subclassed, exports a writable buffer on every Python from 3.10 on, and
keeps its memory for as long as anybody holds an export. A WrappedRegion pages somebody else's buffer.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import operator
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, SupportsIndex

from . import buffers, limits
from ._core import ffi, lib
from .connection import Connection
from .errors import ClosedError, LimitError, UswapError
from .options import Faults
from .owned import Owned
from .residency import STATES, Residency
from .sizes import format_size, parse_integer

__all__ = ["LostDataError", "OwnRegion", "Region", "WrappedRegion"]

PAGE = mmap.PAGESIZE
_MAP_NORESERVE = 0x4000  # mmap has no name for it before Python 3.11
_LOST = bytes([STATES.index("lost")])
_PLAIN = bytes([lib.US_PLAIN])


class LostDataError(UswapError, OSError):
    """Blocks of a region can't be read back from where they are; a touch of one is SIGBUS.

    An ``OSError`` whose ``errno`` is EIO.

    Args:
        region: the region.
        lost: offset in the region and length, in bytes, of each range that is lost, in order.
    """

    region: Region | str
    """The region; its description where the exception has been pickled."""
    lost: list[tuple[int, int]]

    _SHOWN = 4  # ranges in the message

    def __init__(self, region: Region | str, lost: Sequence[tuple[int, int]]) -> None:
        self.region = region
        self.lost = list(lost)
        ranges = [f"{length} bytes at offset {offset}" for offset, length in self.lost]
        if len(ranges) > self._SHOWN:
            more = sum(length for _, length in self.lost[self._SHOWN :])
            ranges[self._SHOWN :] = [f"and {more} bytes in {len(ranges) - self._SHOWN} more ranges"]
        super().__init__(
            errno.EIO,
            f"data of {region if isinstance(region, str) else repr(region)} are lost: "
            + ", ".join(ranges),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        where = self.region if isinstance(self.region, str) else repr(self.region)
        return type(self), (where, self.lost)


class Region:
    """What both kinds of region can do. Offsets and lengths are in bytes from the paged memory's start."""

    pager: Connection  # the Pager, as far as a region has to know it
    address: int
    length: int
    block: int
    faults: str  # "inline" or "message": who resolves them
    _id: int = -1
    _first: int
    _entries: int
    _registration: Owned | None = None
    _plain: int = 0  # bytes from the start that were not registered at first
    _pid: int = 0

    # ---- begin and end

    def _begin(
        self,
        pager: Connection,
        address: int,
        length: int,
        block: int,
        *,
        item: int,
        resident: bool,
        faults: Faults,
        huge: bool,
    ) -> None:
        self.pager = pager
        self.address = address
        self.length = length
        self.block = block
        self._pid = os.getpid()
        pager._check_takes()
        # The registration ends, at the latest, with the object that it is an attribute of, in the core
        # and without a line of Python: an exception of a signal handler has no place in between. An
        # object's attributes go before the memory of the type that it derives from.
        self._registration = Owned("registration", lib.us_registration_new(pager._client))
        registration = self._registration.pointer
        at_end = lib.US_END_RESTORE if resident else lib.US_END_DISCARD
        info = ffi.new("us_registration_info_t *")
        error, inline = 0, False
        for inline in {"auto": (True, False), "inline": (True,), "message": (False,)}[faults]:
            error = lib.us_registration_begin(
                registration,
                address,
                length,
                block,
                item,
                int(resident),
                int(inline),
                int(huge),
                at_end,
            )
            lib.us_registration_info(registration, info)
            if info.failed != lib.US_FAILED_INLINE:
                break
        self.faults = "inline" if inline else "message"
        if error < 0:
            if info.failed == lib.US_FAILED_REGISTER:
                raise OSError(-error, f"userfaultfd register: {os.strerror(-error)}")
            raise pager._failure(error, "region")
        self._id = info.id
        self._first = info.first
        self._entries = info.entries
        self._plain = info.plain
        pager._joined(self)

    def release(self) -> None:
        """Stop paging: all of it comes back into RAM and is ordinary memory from then on.

        May be called again. No byte changes, and no pointer into it becomes invalid.
        """
        self._end(lib.US_END_RESTORE)

    def _end(self, how: int) -> None:
        registration = self._registration
        if registration is None or not self._paged or self._pid != os.getpid():
            return
        error = lib.us_registration_end(registration.pointer, how)
        if error < 0:
            raise self.pager._failure(error, "release")

    @property
    def _paged(self) -> bool:
        return self._registration is not None and bool(
            lib.us_registration_active(self._registration.pointer)
        )

    def _check_paged(self) -> None:
        if self._pid != os.getpid():
            raise ClosedError("the region belongs to the parent process; a forked child has none")
        if not self._paged:
            raise ClosedError("the region is no longer paged")

    @property
    def paged(self) -> bool:
        """Whether it is paged; else it is ordinary memory."""
        return self._paged

    def _blocks(
        self, offset: SupportsIndex, length: SupportsIndex | None, name: str = "offset"
    ) -> tuple[int, int]:
        """The blocks that [offset, offset + length) touches; `name` is what the caller calls offset."""
        self._check_paged()
        begin = parse_integer(offset, name)
        rest = max(0, self.length - begin)
        n = rest if length is None else parse_integer(length, "length", "int, None")
        if not 0 <= begin <= self.length:
            raise ValueError(f"{name}={begin} is outside; accepted: 0 to {self.length}")
        if not 0 <= n <= rest:
            raise ValueError(f"length={n} is outside; accepted: 0 to {rest} at this {name}")
        first = begin // self.block
        return first, -(-(begin + n) // self.block) if n else first

    # ---- moving

    def evict(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> None:
        """Move the blocks of a range out of RAM into the pool, and wait until they are there.

        Blocks that are pinned, or that no tier has room for, stay.
        """
        first, last = self._blocks(offset, length)
        self._range(lib.US_OP_EVICT, first, last)

    def prefetch(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> None:
        """Bring the blocks of a range in, ahead of their use, and wait until they are there.

        A hint: it stops where the limit leaves no room, and swaps in half of the limit at most.
        """
        first, last = self._blocks(offset, length)
        most = self.pager.limit // 2 // self.block
        self._range(lib.US_OP_PREFETCH, first, min(last, first + max(1, most)))

    def migrate(
        self, tier: str, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> None:
        """Move what is out of RAM in a range to a tier, from whichever it is in, and wait until it is there.

        Blocks that are in RAM, of one repeated word, or on their way, stay; evict() comes before. A
        block that finds its tier full goes on to be demoted from there as ever.

        Args:
            tier: its name, one of Pager.tiers.
            offset, length: bytes.

        Raises:
            ValueError: there is no such tier.
            OSError: ENOSPC, the tier has no room and none is being made; the rest stays where it was.
            ClosedError: the region is no longer paged, or was released meanwhile.
        """
        names = self.pager.tiers
        if tier not in names:
            raise ValueError(f"tier={tier!r} is none of this pager's; accepted: {', '.join(names)}")
        first, last = self._blocks(offset, length)
        number = self.pager._tiers.numbers[names.index(tier)]
        self._until_released(lib.US_OP_MIGRATE, first, last, number)

    def _until_released(self, op: int, first: int, last: int, *more: int) -> None:
        try:
            self._range(op, first, last, *more)
        except OSError as e:
            if e.errno != errno.ECANCELED and self._paged:
                raise
            raise ClosedError("the region was released meanwhile") from None

    def _range(self, op: int, first: int, last: int, *more: int) -> None:
        if first < last:
            self.pager._ask(op, self._id, first, last, *more)

    @contextlib.contextmanager
    def pinned(
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> Iterator[memoryview]:
        """Bring a range in and hold it there, writable, for the length of a with block.

        For system calls where the userfaultfd is unprivileged, and for devices.

        Yields:
            A writable view of the range.

        Raises:
            LimitError: it does not fit beside what is pinned already.
        """
        first, last = self._blocks(offset, length)
        # NumPy's narrow integers would overflow.
        end = self.length if length is None else operator.index(offset) + operator.index(length)
        pager = self.pager
        held = (last - first) * self.block
        most = pager.limit - max(pager.limit // 4, 8 * self.block)
        # It ends, at the latest, when the frame of this generator does.
        assert self._registration is not None
        owned = Owned("pin", lib.us_pin_new(self._registration.pointer))
        pin = owned.pointer
        try:
            error = lib.us_pin_begin(pin, first, last, held, most) if held else 0
            if error == -errno.EDQUOT:
                raise LimitError(
                    f"pinned bytes would be {format_size(pager.stats().pinned + held)}; accepted: at "
                    f"most {format_size(most)} with limit={format_size(pager.limit)}"
                )
            if error < 0:
                raise pager._failure(error, "pinned")
            view = self._view()
            with view[offset:end] as part:
                yield part
            view.release()
        finally:
            lib.us_pin_end(pin)

    # ---- what there is to know

    def check(self, start: SupportsIndex = 0, length: SupportsIndex | None = None) -> None:
        """Make sure that what is out of RAM can be read back, without swapping it in.

        Every block of the range that is in the swap file is read and checked as a fault would do it:
        its header, its checksum, that it decompresses to its length. One in the pool is decompressed.
        The blocks stay where they are, so no room within the limit is needed. What is in RAM,
        filled or never touched is not looked at; nor is the copy in the file of a block in RAM.

        A block that can't be read back, after a few tries, is lost from then on: a touch is SIGBUS.

        Args:
            start: bytes from the region's start.
            length: bytes, or up to the end. Every block that the range touches is checked whole.

        Raises:
            LostDataError: blocks of the range are lost, now found or before; names their offsets.
            ClosedError: the region is no longer paged, or was released meanwhile.
        """
        first, last = self._blocks(start, length, "start")
        self._until_released(lib.US_OP_VERIFY, first, last)
        states = self._states(first, last)
        lost: list[tuple[int, int]] = []
        at = states.find(_LOST)
        while at >= 0:
            end = at + 1
            while states[end : end + 1] == _LOST:
                end += 1
            begin = (first + at) * self.block
            lost.append((begin, min((first + end) * self.block, self.length) - begin))
            at = states.find(_LOST, end)
        if lost:
            raise LostDataError(self, lost)

    def _states(self, first: int, last: int, read: Any = lib.us_client_states) -> bytes:
        """The states of some blocks, or what else `read` says of them, a byte each."""
        states = ffi.new("uint8_t[]", max(1, last - first))
        self._check_paged()
        error = read(self.pager._client, self._first + first, last - first, states)
        if error < 0:
            raise self.pager._failure(error, "states")
        return bytes(ffi.buffer(states, last - first))

    def _look_at_plain(self, states: bytes, first: int) -> bytes:
        """Say of blocks in plain memory whether they are there, which no entry tells."""
        at = states.find(_PLAIN)
        if at < 0:
            return states
        end = states.rfind(_PLAIN) + 1  # plain is one run
        begin = (first + at) * self.block
        length = min((first + end) * self.block, self.length) - begin
        there = ffi.new("uint8_t[]", end - at)
        self._check_paged()
        self.pager._check_open()
        error = lib.us_present(self.pager._pagemap, self.address + begin, length, self.block, there)
        if error < 0:
            raise OSError(-error, f"pagemap: {os.strerror(-error)}")
        return states[:at] + bytes(ffi.buffer(there)) + states[end:]

    def residency(
        self, offset: SupportsIndex = 0, length: SupportsIndex | None = None
    ) -> Residency:
        """Return where the bytes of a range of blocks are."""
        first, last = self._blocks(offset, length)
        raw = self._look_at_plain(self._states(first, last), first)
        where = self._states(first, last, lib.us_client_tiers)
        sums = dict.fromkeys(STATES, 0)
        for state, name in enumerate(STATES):
            sums[name] = raw.count(state) * self.block
        numbers = dict(zip(self.pager.tiers, self.pager._tiers.numbers, strict=True))
        tiers = {name: where.count(number) * self.block for name, number in numbers.items()}
        total = (last - first) * self.block
        if last == self._entries and last > first:  # the last block may be a short one
            short = self._entries * self.block - self.length
            sums[STATES[raw[-1]]] -= short
            total -= short
            for name, number in numbers.items():
                tiers[name] -= short if where[-1] == number else 0
        return Residency(
            length=total,
            resident=sums["resident"],
            leaving=sums["leaving"],
            outbox=sums["outbox"],
            filled=sums["filled"],
            pooled=sums["pooled"],
            stored=sums["stored"],
            lost=sums["lost"],
            empty=sums["empty"],
            block=self.block,
            states=raw,
            tiers=tiers,
        )

    def _view(self) -> memoryview:
        raise NotImplementedError

    def __repr__(self) -> str:
        state = "paged" if self._paged else "released"
        return (
            f"<uswap.{type(self).__name__} {self._id}, {format_size(self.length)} at {self.address:#x}, "
            f"blocks of {format_size(self.block)}, {state}>"
        )


def _refuse(error: OSError, what: str) -> None:
    """Raise MemoryError if it is for lack of what memory needs that the system refuses a region."""
    if isinstance(error, UswapError):
        return
    if error.errno == errno.ENOSPC:
        raise MemoryError(
            f"{what}: the pager's table has no room for its blocks; it was made for the address space that"
            " limits (RLIMIT_AS, RLIMIT_DATA) left when the pager began, and for 1 TiB of 4 KiB at most;"
            " a larger block= takes fewer entries"
        ) from error
    if error.errno in (errno.ENOMEM, errno.EAGAIN):
        raise MemoryError(limits.explain(error.errno, what)) from error


class OwnRegion(Region, mmap.mmap):
    """Memory made for paging: a writable buffer (memoryview, len, slices) of zeros at first."""

    _size: int

    @classmethod
    def _make(
        cls, pager: Connection, size: int, block: int, *, item: int, faults: Faults
    ) -> OwnRegion:
        what = f"size={size} ({format_size(size)})"
        try:
            self = cls.__new__(
                cls, -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            )
        except OverflowError as e:
            raise MemoryError(f"{what} is more address space than a process has") from e
        except OSError as e:
            _refuse(e, what)
            raise
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(self)))
        self._size = size
        length = -(-size // PAGE) * PAGE
        try:
            self._begin(
                pager,
                address,
                length,
                block,
                item=item,
                resident=False,
                faults=faults,
                huge=False,
            )
        except OSError as e:
            _refuse(e, what)
            raise
        return self

    def _view(self) -> memoryview:
        return memoryview(self)

    def close(self) -> None:
        """Stop paging, as release() does, and free the memory.

        Raises:
            BufferError: arrays or views of it are in use. They stay valid.
        """
        if not self._paged:
            mmap.mmap.close(self)
            return
        self._check_paged()
        try:
            mmap.mmap.resize(self, self._size)  # nothing, but refused where close() would be
        except BufferError:
            self.release()
            mmap.mmap.close(self)  # BufferError again, unless the view has gone meanwhile
            return
        # The address is given to others only when nothing of it is on its way any more.
        self._end(lib.US_END_DISCARD)
        mmap.mmap.close(self)

    def __enter__(self) -> OwnRegion:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def resize(self, newsize: int) -> None:
        """Refused: pointers into a region stay valid."""
        raise TypeError("a region can't be resized")

    def madvise(self, option: int, start: int = 0, length: int | None = None) -> None:
        """Refused: advice behind the pager's back could lose data."""
        raise TypeError("a region takes no advice; evict() and prefetch() are its own")

    __hash__ = object.__hash__


class WrappedRegion(Region):
    """The whole pages inside somebody's buffer, paged where they lie. A context manager.

    Attributes:
        head, tail: bytes of the buffer before and after the paged pages.
    """

    head: int
    tail: int
    _buffer: memoryview | None = None

    @classmethod
    def _make(
        cls, pager: Connection, buffer: Any, block: int, *, item: int | None, faults: Faults
    ) -> WrappedRegion:
        self = cls.__new__(cls)
        # Attributes go in the order in which they came: the export after the registration has ended.
        self._registration = None
        self._buffer = view = buffers.export(buffer)
        if item is None:
            item = buffers.itemsize(buffer)
        try:
            span = buffers.locate(view, block=block)
            self.head, self.tail = span.head, span.tail
            span = buffers.forbid_hugepages(span)
            try:
                self._begin(
                    pager,
                    span.address,
                    span.length,
                    block,
                    item=item,
                    resident=True,
                    faults=faults,
                    huge=buffers.wants_hugepages(span),
                )
                pager._kept(self)
                if self._plain == span.length:
                    buffers.restore_hugepages(span)
            except OSError as e:
                buffers.restore_hugepages(span)
                if e.errno in (errno.EBUSY, errno.EEXIST):
                    by = pager._holder(span.address, span.length)
                    raise buffers.taken(view, by=by) from e
                raise
        except OSError as e:
            self._end(lib.US_END_RESTORE)
            length = view.nbytes
            view.release()
            _refuse(e, f"a buffer of {format_size(length)}")
            raise
        except BaseException:
            self._end(lib.US_END_RESTORE)
            view.release()
            raise
        return self

    def wraps(self, array: Any) -> bool:
        """Whether `array` lies inside the wrapped buffer."""
        try:
            with memoryview(array) as view:
                at = int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
                return self.address - self.head <= at < self.address + self.length + self.tail
        except (TypeError, ValueError, BufferError):
            return False

    def _view(self) -> memoryview:
        if self._buffer is None:
            raise ClosedError("the region is released")
        return self._buffer[self.head : self.head + self.length]

    def release(self) -> None:
        """Stop paging: the buffer is ordinary memory again, and its export is given back."""
        self._end(lib.US_END_RESTORE)
        if self._buffer is not None and not self._paged and self._pid == os.getpid():
            self._buffer.release()
            self._buffer = None
            self.pager._unwrapped(self._id)

    def __len__(self) -> int:
        return self.length

    def __buffer__(self, flags: int) -> memoryview:
        """The paged pages; on Python 3.12 or newer."""
        return self._view()

    def __enter__(self) -> WrappedRegion:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
