# SPDX-License-Identifier: MIT
"""The part of Pager that makes regions, and knows those that are paged."""

from __future__ import annotations

import errno
import weakref
from typing import Any, SupportsIndex

from .connection import Connection
from .errors import UnsupportedKernelError
from .options import Faults, parse_block, parse_faults
from .region import OwnRegion, Region, WrappedRegion
from .sizes import Size, parse_integer, parse_size

__all__ = ["Regions", "alive", "lingering"]

alive: weakref.WeakSet[Regions] = weakref.WeakSet()
lingering: set[Regions] = set()  # closed, with wrapped buffers that are still paged


class Regions(Connection):
    """Makes regions."""

    def __init__(self) -> None:
        # By number, which is used again. No call-backs: what runs in them is never seen to fail.
        self._refs: dict[int, weakref.ref[Region]] = {}
        # Who wraps a buffer wants it paged, whether or not he keeps the region.
        self._wrapped: dict[int, WrappedRegion] = {}

    def region(
        self,
        size: Size,
        *,
        block: Size | None = None,
        itemsize: SupportsIndex | None = None,
        faults: Faults | None = None,
    ) -> OwnRegion:
        """Make a paged region of zeros.

        Args:
            size: bytes, or "1GiB".
            block: bytes that come and go as one, a power of two from "4KiB" to "2MiB".
            itemsize: bytes of the numbers that it will hold, if they are of one type. With 2, 4 or 8
                no other size is tried when it is found out how they compress best (see the option
                ``shuffle``); with any other, or without, all three are.
            faults: "message", "inline" or "auto", instead of the pager's (see the option ``faults``).

        Returns:
            A region: a writable buffer of `size` bytes, page-aligned.

        Raises:
            ClosedError, TypeError, ValueError, MemoryError
        """
        self._check_takes()
        length = parse_size(size, "size", minimum=1)
        how = self._faults(faults)
        return OwnRegion._make(
            self, length, self._block(block), item=item_size(itemsize) or 0, faults=how
        )

    def wrap(
        self,
        buffer: Any,
        *,
        block: Size | None = None,
        itemsize: SupportsIndex | None = None,
        faults: Faults | None = None,
    ) -> WrappedRegion:
        """Page a buffer where it lies, until the region is released.

        Paged are the whole pages inside the buffer; what lies before the first and after the last
        stays ordinary memory. The buffer's export is held, so it can be neither freed nor resized.

        Args:
            buffer: writable, contiguous, private memory: numpy.ndarray, bytearray, array.array, a
                private anonymous mmap, ...
            block, faults: as for region().
            itemsize: as for region(); by default what the buffer says of itself.

        Raises:
            BufferRefusedError: it can't be paged; says why. Nothing was changed.
        """
        self._check_takes()
        how = self._faults(faults)
        return WrappedRegion._make(
            self, buffer, self._block(block), item=item_size(itemsize), faults=how
        )

    def region_of(self, array: Any) -> Region:
        """Return the region in which an array of this pager lies.

        Raises:
            ValueError: it lies in none.
        """
        base = array
        while base is not None:
            if isinstance(base, Region):
                if base.pager is self:
                    return base
                break
            if isinstance(base, memoryview):
                base = base.obj
            else:
                base = getattr(base, "base", None)
        for region in list(self._wrapped.values()):
            if region.wraps(array):
                return region
        raise ValueError(f"array={type(array).__name__} lies in no region of this pager")

    @property
    def regions(self) -> list[Region]:
        """The regions that are paged now."""
        regions = (ref() for ref in list(self._refs.values()))
        return [region for region in regions if region is not None and region.paged]

    def _faults(self, faults: Faults | None = None) -> Faults:
        """Who resolves the faults of a new region; "auto" where that is tried."""
        how = parse_faults(self._options.faults if faults is None else faults)
        if how == "inline" and not self._can_inline:
            raise UnsupportedKernelError(
                errno.ENOSYS,
                "faults='inline' needs a userfaultfd with UFFD_FEATURE_SIGBUS (Linux 4.14) and glibc; "
                "accepted here: 'message', 'auto'",
            )
        if how == "inline" or (how == "auto" and self._can_inline and self._roomy):
            return how
        return "message"

    def _block(self, block: Size | None) -> int:
        if block is None:
            return self._options.block
        size = parse_block(block)
        self._check_limit(size, "block")
        return size

    def _blocks(self) -> list[int]:
        return [*super()._blocks(), *(region.block for region in self.regions)]

    def _joined(self, region: Region) -> None:
        self._refs[region._id] = weakref.ref(region)

    def _kept(self, region: WrappedRegion) -> None:
        self._wrapped[region._id] = region

    def _unwrapped(self, number: int) -> None:
        self._wrapped.pop(number, None)
        if not self._wrapped:
            lingering.discard(self)

    def _holder(self, address: int, length: int) -> str | None:
        for pager in [self, *(other for other in list(alive) if other is not self)]:
            for region in pager.regions:
                if region.address < address + length and address < region.address + region.length:
                    whose = "this pager" if pager is self else f"another pager, {pager!r}"
                    return f"{region!r} of {whose}"
        return None


def item_size(value: SupportsIndex | None) -> int | None:
    """Return the bytes of a number, as region() and wrap() take them."""
    if value is None:
        return None
    accepted = "bytes of a number, from 1 to 65536; 2, 4 and 8 are of use"
    size = parse_integer(value, "itemsize", accepted)
    if not 1 <= size <= 1 << 16:
        raise ValueError(f"itemsize={value!r} is out of range; accepted: {accepted}")
    return size
