# SPDX-License-Identifier: MIT
"""What a pager is to its regions: the core's client, the pager process, and how that is asked.

Regions know no more of their pager than this, so that there are modules below them and above: Pager
derives from it, with what makes regions and arrays in between.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
from typing import Any

from ._core import ffi, lib
from .descriptors import UFFD
from .errors import ClosedError, LimitError, PagerDied
from .options import Options, parse_size_of
from .owned import Owned
from .sizes import SizeOrPart, format_size
from .stats import Stats
from .swapfile import SwapFile
from .tiers import FILE, Resolved, TierStats
from .trace.file import TraceFile
from .wire import Message

__all__ = ["LIMIT_BLOCKS", "LIMIT_MIN", "Connection", "at_exit"]

LIMIT_MIN = 1 << 20  # and at least this many blocks of a region:
LIMIT_BLOCKS = 16
SLICE_MS = 50  # after which a wait looks whether a signal handler has something to raise


class at_exit:  # noqa: N801 - a flag that is one name in every module
    """Whether the interpreter ends: then finalisers leave all as it is."""

    begun = False


class Connection:
    """A running pager without its regions. Pager makes it, and ends it."""

    _closed: bool
    _leaving: bool
    _pid: int  # of the process that made it
    _options: Options
    _tiers: Resolved
    _pools: tuple[tuple[int, str, int], ...]  # bytes, codec and level of each
    _client: Any  # us_client_t *
    _uffd: Any  # us_uffd_t *
    _can_inline: bool  # there is a userfaultfd for inline regions
    _roomy: bool  # the address space has room for the pools, which a client with such regions maps
    _take: str
    _drop: str
    _pagemap: int
    _swapfile: SwapFile | None
    _trace: TraceFile | None
    _socket: socket.socket
    _descriptors: list[int]
    _pager_pid: int
    _about: Message  # what the pager process says of itself

    # ---- asking the pager process

    def _check_open(self) -> None:
        if at_exit.begun:
            raise ClosedError("the interpreter is ending")
        if self._pid != os.getpid():
            raise ClosedError("the pager belongs to the parent process; a forked child has none")
        if self._closed:
            raise ClosedError("the pager is closed")

    def _check_takes(self) -> None:
        """Make sure that there may be another region."""
        self._check_open()
        if self._leaving:
            raise ClosedError("the pager is closed but for the arrays that are still in use")

    def _ask(self, op: int, region: int = 0, *arguments: int) -> tuple[int, ...]:
        """Ask the pager process, and return its answer's values.

        An exception from a signal handler may come at any moment of the wait; what was asked is done
        all the same. What must not be given up half-way is asked by the core, see us_registration_t.

        Raises:
            OSError: the pager answers with an error.
            PagerDied, ClosedError
        """
        if at_exit.begun:
            raise ClosedError("the interpreter is ending")
        owned = Owned("ticket", lib.us_ticket_new(self._client))
        ticket = owned.pointer
        request = ffi.new("us_request_t *", {"op": op, "region": region, "arg": arguments})
        reply = ffi.new("us_reply_t *")
        done = lib.us_ticket_ask(ticket, request)
        while done == 0:
            done = lib.us_ticket_wait(ticket, SLICE_MS, reply)
        if done < 0:
            raise self._failure(done, "the pager process")
        if reply.error:
            raise OSError(reply.error, ffi.string(reply.text).decode(errors="replace"))
        return tuple(reply.value)

    def _failure(self, error: int, what: str) -> Exception:
        """What an error of the core means: -errno."""
        if error == -errno.ECHILD:
            return ClosedError("the pager belongs to the parent process; a forked child has none")
        if self._closed or error == -errno.ESHUTDOWN:
            return ClosedError("the pager is closed")
        if error == -errno.EPIPE:
            return PagerDied(f"the pager process {self._pager_pid} is gone")
        return OSError(-error, f"{what}: {os.strerror(-error)}")

    def _check_limit(self, block: int, name: str, limit: int | None = None) -> None:
        limit = self._options.limit if limit is None else limit
        least = max(LIMIT_MIN, LIMIT_BLOCKS * block)
        if limit < least:
            raise LimitError(
                f"limit={limit} is too small for {name}={format_size(block)}; accepted: at least "
                f"{format_size(least)}, which is {LIMIT_BLOCKS} blocks and 1 MiB or more"
            )

    # ---- what its regions say of themselves

    def _joined(self, region: Any) -> None:
        """A region is paged from now on."""
        raise NotImplementedError

    def _kept(self, region: Any) -> None:
        """A buffer has been wrapped: its region is to be kept until it is released."""
        raise NotImplementedError

    def _unwrapped(self, number: int) -> None:
        """A wrapped buffer has been released."""
        raise NotImplementedError

    def _holder(self, address: int, length: int) -> str | None:
        """Which region of which pager has some of a range, in words; None: none does."""
        raise NotImplementedError

    def _blocks(self) -> list[int]:
        """The sizes of blocks that the limit must have room for."""
        return [self._options.block]

    # ---- what there is to know

    @property
    def pid(self) -> int:
        """The pager process's id."""
        return self._pager_pid

    @property
    def limit(self) -> int:
        """Resident bytes of all regions together, at most. May be set at any time, up and down.

        When a lower one has been set, what is above it has left, or can't leave.
        """
        return self._options.limit

    @limit.setter
    def limit(self, limit: SizeOrPart) -> None:
        self._check_open()
        size = parse_size_of("limit", limit)
        self._check_limit(max(self._blocks()), "block", size)
        self._ask(lib.US_OP_LIMIT, 0, size)
        self._options = dataclasses.replace(self._options, limit=size)

    @property
    def pool(self) -> int:
        """Bytes that the first pool's compressed blocks may take. May be set at any time.

        At most what it was made for, rounded up to a power of two. When a smaller one has been set, what
        is above it has gone to the next tier; without one it shrinks as blocks come back.
        """
        return self._pools[0][0]

    @pool.setter
    def pool(self, pool: SizeOrPart) -> None:
        self._check_open()
        size = parse_size_of("pool", pool)
        try:
            self._ask(lib.US_OP_POOL, 0, size)
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            most = 1 << (self._options.pool - 1).bit_length()
            raise ValueError(
                f"pool={pool!r} is more than this pager's pool was made for; accepted: at most"
                f" {format_size(most)}"
            ) from None
        self._pools = ((size, *self._pools[0][1:]), *self._pools[1:])

    @property
    def swap(self) -> int:
        """Bytes of the swap file; 0 without one. It was reserved at the start and can't be changed."""
        return self._swapfile.size if self._swapfile is not None else 0

    @property
    def options(self) -> Options:
        """All options, with defaults filled in."""
        return self._options

    @property
    def tiers(self) -> tuple[str, ...]:
        """The names of the tiers, hot to cold."""
        return self._tiers.names

    def about(self) -> dict[str, str]:
        """How this pager works here: uffd, take, drop, codec and where its library comes from.

        ``shuffle`` is "off", or by which instructions bytes are shuffled, "AVX2" or "SSE2".
        """
        how = {number: name for name, number in UFFD.items()}
        return {
            "uffd": how[int(self._uffd.how)],
            "take": self._take,
            "drop": self._drop,
            "codec": ", ".join(codec for _size, codec, _level in self._pools),
            "codec_from": self._about["codec"],
            "shuffle": self._about["shuffle"],
            "io": self._about["io"],
            "swapfile": self._swapfile.about if self._swapfile is not None else "none",
            "trace": self._trace.path if self._trace is not None else "none",
        }

    def stats(self) -> Stats:
        """Return the counters and gauges as they are now (after close(): as they were at its end)."""
        client = self._client
        raw = ffi.new("us_stats_t *")
        if (error := lib.us_client_stats(client, raw)) < 0:
            raise self._failure(error, "stats")

        def quantile(kind: int, q: float) -> int:
            return int(lib.us_client_quantile(client, kind, q))

        tiers = tuple(
            TierStats.read(raw.tier[number], name, "file" if number == FILE else "pool")
            for name, number in zip(self._tiers.names, self._tiers.numbers, strict=True)
        )
        return Stats.read(raw, quantile, tiers)

    def check(self) -> None:
        """Have the pager check its invariants; for tests. Slow.

        Raises:
            AssertionError: one does not hold; its number is explained in csrc/types.h.
        """
        self._check_open()
        broken = self._ask(lib.US_OP_CHECK)[0]
        if broken:
            raise AssertionError(f"invariant E{broken} does not hold")
