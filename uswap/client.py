# SPDX-License-Identifier: MIT
"""The client half: a pager process, the mover thread, and the regions that they page.

The order in which things begin and end is what this module is about, since a fault that nobody serves
is a thread that stands for ever:

    begin   userfaultfd, space, mover, pager process; then regions: known to the pager, registered,
            then active.
    end     each region: nothing leaves any more, all of it comes back, unregistered, forgotten; then
            the mover stops, then the pager process ends, then the descriptors go.

At interpreter exit nothing is brought back: the pager serves until the process is gone, and sees that
by a pidfd. In a forked child nothing works and nothing is shared: regions are not there (a touch is
SIGSEGV), and every method raises ClosedError.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import errno
import os
import signal
import socket
import subprocess
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import launch, limits, swapfile, wire
from . import options as _options
from . import tiers as _tiers
from . import trace as _trace
from ._core import ffi, lib
from .arrays import Arrays
from .buffers import export as _export
from .errors import (
    ClosedError,
    DegradedWarning,
    LimitError,
    PagerDied,
    PagerStartError,
    StillPagedWarning,
    UnknownVariableWarning,
    UnsupportedKernelError,
    UswapError,
)
from .owned import Owned
from .paths import check_parent, path_of
from .region import OwnRegion, Region, WrappedRegion, at_exit
from .sizes import format_size, free_memory, parse_integer, parse_size
from .stats import Stats

if TYPE_CHECKING:
    from typing import SupportsIndex

    # Of Python 3.11; type checkers know it whether or not it is installed.
    from typing_extensions import Unpack

    from .options import PagerOptions

    Size = SupportsIndex | str
    SizeOrPart = SupportsIndex | str | float

    class PagedOptions(PagerOptions, total=False):
        """What paged() takes beside limit and pool."""

        swapfile: str | os.PathLike[str] | None
        swap: Size | None
        tiers: Sequence[_tiers.Pool | _tiers.File] | None
        overwrite: bool


__all__ = ["Paged", "Pager", "paged"]

OUTBOX = 8 << 20  # bytes; four of the largest blocks
TABLE = 1 << 28  # entries that the sparse table has room for, at most: 1 TiB in blocks of 4 KiB
LIMIT_MIN = 1 << 20  # and at least this many blocks of a region:
LIMIT_BLOCKS = 16
SPARE_MIN = (
    64 << 20
)  # bytes that are left free when all is brought back, or an eighth of what is free
SLICE_MS = 50  # after which a wait looks whether a signal handler has something to raise

_IO_OPS = {"read": 0, "write": 1}
_IO_ERRORS = {"SHORT": 1000, "FLIP": 1001, "LATE": 1002, "SLOW": 1003}
_UFFD = {"auto": 0, "device": 1, "syscall": 2, "user-mode": 3}
_alive: weakref.WeakSet[Pager] = weakref.WeakSet()
_left: set[Pager] = set()  # closed, with wrapped buffers that are still paged


class Pager(Arrays):
    """Pages the regions made by it through a compressed pool, within `limit` resident bytes.

    A context manager; leaving it is close().

    Args:
        limit: resident bytes of all regions together, at most: int bytes, "2GiB", or a fraction
            (0 < f <= 1) of the memory available to the process.
        pool: bytes of the compressed pool, at most; the same forms.
        swapfile: a directory, in which an unnamed file is made, or a path: where the pool's coldest
            objects go when it fills. Without it there is no second tier.
        swap: bytes of the swap file; reserved at once.
        tiers: in place of pool, swapfile and swap: a list, hot to cold, of one to three uswap.Pool and
            then at most one uswap.File.
        overwrite: use an existing file or block device in place; what it holds is lost.
        options: the other rows of ``uswap config``: block, codec, level, workers, readahead, ...

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it and what is accepted.
        LimitError: `limit` has no room for the blocks that one instruction may touch.
        UnsupportedKernelError: no userfaultfd, or one without write protection (Linux before 5.7); or
            what was asked for by name (take, io) is not possible here.
        PagerStartError: the pager process did not become ready.
    """

    def __init__(
        self,
        limit: SizeOrPart | None = None,
        pool: SizeOrPart | None = None,
        swapfile: str | os.PathLike[str] | None = None,
        swap: Size | None = None,
        *,
        tiers: Sequence[_tiers.Pool | _tiers.File] | None = None,
        overwrite: bool = False,
        **options: Unpack[PagerOptions],
    ) -> None:
        self._closed = True  # until all is there
        for message in _options.unknown_variables_once():
            warnings.warn(message, UnknownVariableWarning, stacklevel=2)
        self._leaving = False  # closed, but for the regions that are still in use
        if swapfile is not None:
            swapfile = path_of(swapfile, "swapfile")
        given: dict[str, Any] = {**options, "pool": pool, "swapfile": swapfile, "swap": swap}
        for name in ("trace", "python"):
            if given.get(name) is not None:
                given[name] = path_of(given[name], name)
        self._tiers = _tiers.resolve(tiers, given, overwrite=overwrite)
        rest = self._tiers.pools
        self._options = _options.resolve(
            limit=limit, last_pool=rest[-1][0] if rest else None, **(given | self._tiers.short)
        )
        o = self._options
        self._pools = ((o.pool, o.codec, o.level), *rest)
        self._overwrite = self._tiers.overwrite
        self._check_limit(self._options.block, "block")
        self._pid = os.getpid()
        # By number, which is used again. No call-backs: what runs in them is never seen to fail.
        self._refs: dict[int, weakref.ref[Region]] = {}
        # Who wraps a buffer wants it paged, whether or not he keeps the region.
        self._wrapped: dict[int, WrappedRegion] = {}
        try:
            with launch.low_descriptors_taken(), _Undo() as undo:
                self._start(undo)
                self._undo = undo.pop_all()
        except OSError as e:
            # What was asked for by path has its own words, and the path.
            if isinstance(e, UswapError) or e.filename is not None or e.errno not in limits.LIMITS:
                raise
            raise PagerStartError(limits.explain(e.errno, "starting a pager")) from e
        self._closed = False
        _alive.add(self)
        self._undo.ending = False

    # ---- begin and end

    def _start(self, undo: contextlib.ExitStack) -> None:
        o = self._options
        uffd = self._open_uffd(undo)
        layout = ffi.new("us_layout_t *")
        budgets = ffi.new("uint64_t[]", _tiers.POOLS)
        for k, (size, _codec, _level) in enumerate(self._pools):
            budgets[k] = size
        space = lib.us_space_create(OUTBOX, budgets, _table_entries(), layout)
        _check(space, "memfd_create", layout.size)
        undo.callback(os.close, space)
        doorbell, notify = _eventfd(undo), _eventfd(undo)
        delays, inject = _parse_delays(o.delays), _parse_inject(o.inject)
        for point, usec in delays:
            _check(lib.us_delay_set(point.encode(), usec), f"delays={point!r}")
        for op, error, every in inject:
            if op in _IO_OPS:
                continue
            _check(lib.us_inject_set(op.encode(), error, every), f"inject={op!r}")
        if o.swapfile and o.io == "uring" and (refused := -lib.us_probe_io_uring()):
            raise UnsupportedKernelError(
                refused,
                f"io='uring' is not possible here, the kernel refuses it ({os.strerror(refused)});"
                " accepted: 'auto' or 'threads'; `uswap doctor` says what to change",
            )
        self._swapfile = self._open_swapfile(undo) if o.swapfile else None
        self._trace = self._open_trace(undo) if o.trace else None
        # Memory that is not registered is used without a fault: a trace would not see it.
        late = o.register == "late" and not o.trace
        self._pagemap = _open_pagemap(undo)
        report = ffi.new("us_probe_report_t *")
        lib.us_probe_kernel(report)
        _check(-report.pidfd_errno, "pidfd_open")  # each process sees the other's end by one
        self._take = _choose("take", o.take, "move", bool(self._uffd.enabled & (1 << 16)), "copy")
        self._drop = _choose("drop", o.drop, "vector", report.self_advice_errno == 0, "single")
        self._owned = Owned("client", lib.us_client_new())
        self._client = self._owned.pointer
        undo.callback(_close_client, self._owned)
        _check(
            lib.us_client_open(
                self._client,
                uffd,
                space,
                doorbell,
                notify,
                lib.US_DROP_VECTOR if self._drop == "vector" else lib.US_DROP_SINGLE,
            ),
            "the mover's thread and memory",
            OUTBOX,
        )
        staging_len = ffi.new("uint64_t *")
        staging = lib.us_client_staging(self._client, staging_len)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = launch.start(theirs, o.python)
            except BaseException:
                ours.close()
                raise
        self._pager_pid = process.pid
        undo.callback(_reap, process.pid)
        undo.callback(ours.close)  # without it the pager process ends
        hello = {
            "pid": os.getpid(),
            "client_pid": os.getpid(),
            "mover_tid": lib.us_client_tid(self._client),
            "staging": staging,
            "staging_len": staging_len[0],
            "limit": o.limit,
            "pools": self._pools,
            "readahead": o.readahead,
            "workers": o.workers or min(4, len(os.sched_getaffinity(0))),
            "take": lib.US_TAKE_MOVE if self._take == "move" else lib.US_TAKE_COPY,
            "follow": 1,
            "servers": o.servers or min(2, len(os.sched_getaffinity(0))),
            "delays": delays,
            "inject": [row for row in inject if row[0] not in _IO_OPS],
            "shuffle": o.shuffle,
            "late": late,
            "io": o.io,
            "io_inject": [(_IO_OPS[op], err, n) for op, err, n in inject if op in _IO_OPS],
        }
        if self._swapfile is not None:
            hello |= {"swap": self._swapfile.size, "segment": o.segment}
        fds = {"uffd": uffd, "space": space, "doorbell": doorbell, "notify": notify}
        if self._swapfile is not None:
            fds["swap"] = self._swapfile.fd
        if self._pagemap >= 0:
            fds["pagemap"] = self._pagemap
        if self._trace is not None:
            fds["trace"] = self._trace.fd
        try:
            self._about = _greet(ours, process, hello, fds, o.pager_timeout)
        finally:
            process.returncode = 0  # see _reap
        self._pidfd = _pidfd_open(process.pid)
        undo.callback(os.close, self._pidfd)
        # The first to end, so that nothing watches for the pager's end any more.
        undo.callback(_close_client, self._owned)
        _check(lib.us_client_attach(self._client, ours.fileno(), self._pidfd), "the control socket")
        self._descriptors = [*fds.values(), ours.fileno(), self._pidfd]
        # Whoever ends it is the core; Popen has nothing to warn of.
        self._socket = ours

    def _open_uffd(self, undo: contextlib.ExitStack) -> int:
        self._uffd = ffi.new("us_uffd_t *")
        error = lib.us_uffd_open(_UFFD[self._options.uffd], self._uffd)
        if -error in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise _refusal(-error, "userfaultfd")
        if error < 0:
            raise UnsupportedKernelError(
                -error,
                f"no userfaultfd ({os.strerror(-error)}); `uswap doctor` says what to change",
            )
        uffd = int(self._uffd.fd)
        undo.callback(os.close, uffd)
        if not self._uffd.enabled & 1:
            raise UnsupportedKernelError(
                errno.ENOSYS,
                "this kernel's userfaultfd has no write protection; Linux 5.7 or newer is needed",
            )
        if self._uffd.how == lib.US_UFFD_USER_MODE:
            warnings.warn(
                "no privilege for a full userfaultfd: a system call on evicted memory fails with"
                " EFAULT (hold the range with region.pinned() around it); `uswap doctor` says"
                " what to change",
                DegradedWarning,
                stacklevel=4,
            )
        return uffd

    def _open_swapfile(self, undo: contextlib.ExitStack) -> swapfile.SwapFile:
        o = self._options
        check_parent(o.swapfile, "swapfile")
        file = swapfile.open_swap(o.swapfile, o.swap, segment=o.segment, overwrite=self._overwrite)
        undo.callback(file.close)
        if file.in_ram:
            warnings.warn(
                f"swapfile={o.swapfile!r} is in RAM (tmpfs): what goes there frees no memory;"
                " accepted: a directory on a disk",
                DegradedWarning,
                stacklevel=4,
            )
        elif not file.direct:
            warnings.warn(
                f"swapfile={o.swapfile!r} has no O_DIRECT ({file.why}): it is used through the page"
                " cache, which is slower and takes memory for a moment; `uswap doctor --swapfile"
                " DIR` looks at a directory",
                DegradedWarning,
                stacklevel=4,
            )
        return file

    def _open_trace(self, undo: contextlib.ExitStack) -> _trace.TraceFile:
        check_parent(self._options.trace, "trace")
        return undo.enter_context(_trace.create(self._options.trace, limit=self._options.limit))

    def close(self, restore: bool = False, discard: bool = False) -> None:
        """End the pager: with the last array, where bringing all of them back would not fit.

        What is still referenced is brought back into RAM, where it is ordinary memory, if there is room
        to spare for that (of the host and of the process's cgroups). Else the pager goes on serving it
        within the limit, a StillPagedWarning says so, and it ends when the last region does; it takes
        no new ones. May be called again.

        Args:
            restore: bring all of it back, whether or not there is room to spare.
            discard: give up what regions and arrays of this pager hold that are still referenced: a
                touch of one is SIGSEGV, never a zero. Wrapped buffers are their owners', and come back.
        """
        if restore and discard:
            raise ValueError("restore=True and discard=True are given; accepted: one of them")
        if self._closed or self._pid != os.getpid():
            return
        how = lib.US_END_DISCARD if discard else lib.US_END_RESTORE
        if not (restore or discard) and (too_large := self._too_large_to_restore()):
            how = lib.US_END_LATER
        left = lib.us_client_close(self._client, how)
        if left < 0:
            raise self._failure(left, "close")
        if left > 0:
            if not self._leaving:
                self._leaving = True
                if self._wrapped:  # whoever wrapped a buffer need not have kept anything of ours
                    _left.add(self)
                warnings.warn(
                    f"{too_large}; the pager goes on serving them within limit="
                    f"{format_size(self.limit)}, and ends with the last of them (close(restore=True)"
                    " and close(discard=True) say what else to do)",
                    StillPagedWarning,
                    stacklevel=2,
                )
            return
        self._finish()

    def _too_large_to_restore(self) -> str | None:
        """What is out, and what memory is free, where the first is more than fits with room to spare."""
        s = self.stats()
        out = s.pooled_raw + s.stored_raw + s.filled + s.outbox
        free = free_memory()
        spare = max(SPARE_MIN, free.bytes // 8)
        if out == 0 or out + spare <= free.bytes:
            return None
        return (
            f"arrays that are still in use have {format_size(out)} out of RAM, and only"
            f" {format_size(free.bytes)} of memory are free ({free.source})"
        )

    def _unwrapped(self, number: int) -> None:
        """A wrapped buffer has been released."""
        self._wrapped.pop(number, None)
        if not self._wrapped:
            _left.discard(self)

    def _finish(self) -> None:
        self._undo.ending = True
        self._closed = True
        _alive.discard(self)
        _left.discard(self)
        for region in list(self._wrapped.values()):
            region.release()
        self._undo.close()

    def __enter__(self) -> Pager:
        self._check_takes()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_closed", True) or at_exit.begun or self._pid != os.getpid():
            return
        if self._leaving:  # its last region has gone
            self._finish()
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self.close()

    def __repr__(self) -> str:
        o = self._options
        return (
            f"<uswap.Pager limit={format_size(o.limit)}, "
            f"pool={format_size(sum(size for size, _, _ in self._pools))}, "
            f"{'closed' if self._closed else f'{len(self.regions)} regions'}>"
        )

    # ---- talking to the pager

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

    def _block(self, block: Size | None) -> int:
        if block is None:
            return self._options.block
        size = _options.parse_block(block)
        self._check_limit(size, "block")
        return size

    # ---- regions

    def region(
        self, size: Size, *, block: Size | None = None, itemsize: SupportsIndex | None = None
    ) -> OwnRegion:
        """Make a paged region of zeros.

        Args:
            size: bytes, or "1GiB".
            block: bytes that come and go as one, a power of two from "4KiB" to "2MiB".
            itemsize: bytes of the numbers that it will hold, if they are of one type. With 2, 4 or 8
                no other size is tried when it is found out how they compress best (see the option
                ``shuffle``); with any other, or without, all three are.

        Returns:
            A region: a writable buffer of `size` bytes, page-aligned.

        Raises:
            ClosedError, TypeError, ValueError, MemoryError
        """
        self._check_takes()
        length = parse_size(size, "size", minimum=1)
        return OwnRegion._make(self, length, self._block(block), _itemsize(itemsize) or 0)

    def wrap(
        self, buffer: Any, *, block: Size | None = None, itemsize: SupportsIndex | None = None
    ) -> WrappedRegion:
        """Page a buffer where it lies, until the region is released.

        Paged are the whole pages inside the buffer; what lies before the first and after the last
        stays ordinary memory. The buffer's export is held, so it can be neither freed nor resized.

        Args:
            buffer: writable, contiguous, private memory: numpy.ndarray, bytearray, array.array, a
                private anonymous mmap, ...
            block: as for region().
            itemsize: as for region(); by default what the buffer says of itself.

        Raises:
            BufferRefusedError: it can't be paged; says why. Nothing was changed.
        """
        self._check_takes()
        return WrappedRegion._make(self, buffer, self._block(block), _itemsize(itemsize))

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

    def _holder(self, address: int, length: int) -> str | None:
        """Which region of which pager has some of a range, in words; None: none does."""
        for pager in [self, *(other for other in list(_alive) if other is not self)]:
            for region in pager.regions:
                if region.address < address + length and address < region.address + region.length:
                    whose = "this pager" if pager is self else f"another pager, {pager!r}"
                    return f"{region!r} of {whose}"
        return None

    @property
    def _regions(self) -> dict[int, Region]:
        return {region._id: region for region in self.regions}

    @property
    def regions(self) -> list[Region]:
        """The regions that are paged now."""
        regions = (ref() for ref in list(self._refs.values()))
        return [region for region in regions if region is not None and region.paged]

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
        size = _options.parse_size_of("limit", limit)
        blocks = [self._options.block, *(region.block for region in self.regions)]
        self._check_limit(max(blocks), "block", size)
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
        size = _options.parse_size_of("pool", pool)
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
    def options(self) -> _options.Options:
        """All options, with defaults filled in."""
        return self._options

    @property
    def tiers(self) -> tuple[str, ...]:
        """The names of the tiers, hot to cold."""
        return self._tiers.names

    def about(self) -> dict[str, str]:
        """How this pager works here: uffd, take, drop, codec and where its library comes from.

        ``shuffle`` is where the library that shuffles is from, "none" if there is none, or "off".
        """
        how = {number: name for name, number in _UFFD.items()}
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
            _tiers.TierStats.read(
                raw.tier[number], name, "file" if number == _tiers.FILE else "pool"
            )
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


class Paged:
    """What paged() gives: its pager, and the region of each buffer in order."""

    def __init__(self, pager: Pager, regions: list[WrappedRegion]) -> None:
        self.pager = pager
        self.regions = regions


@contextlib.contextmanager
def paged(
    *buffers: Any,
    limit: SizeOrPart | None = None,
    pool: SizeOrPart | None = None,
    **options: Unpack[PagedOptions],
) -> Iterator[Paged]:
    """Page buffers that exist, where they lie, for the length of a with block.

    Args:
        buffers: as for Pager.wrap().
        limit: as for Pager, but a fraction is one of the buffers' bytes: 0.25 keeps a quarter of them in
            RAM, or as little as a pager can do with (16 blocks, and 1 MiB).
        pool, options: as for Pager.

    Yields:
        The pager and the regions. Afterwards the buffers are ordinary memory again.
    """
    limit = _part_of(buffers, limit, options.get("block"))
    with Pager(limit=limit, pool=pool, **options) as pager:
        yield Paged(pager, [pager.wrap(buffer) for buffer in buffers])


# ---- helpers


def _part_of(
    buffers: tuple[Any, ...], limit: SizeOrPart | None, block: Size | None
) -> SizeOrPart | None:
    """A limit that is a fraction (a float, NumPy's too, text, ...), as bytes: of the buffers."""
    total = -1  # not asked for: not a fraction

    def whole() -> int:
        nonlocal total
        total = 0
        for buffer in buffers:
            with _export(buffer) as view:
                total += view.nbytes
        return total

    size = 0 if limit is None else parse_size(limit, "limit", base=whole)
    if total < 0:
        return limit
    least = LIMIT_BLOCKS * _options.resolve(limit=1 << 40, block=block).block
    return max(size, LIMIT_MIN, least)


def _check(result: int, what: str, wanted: int = 0) -> int:
    if result < 0:
        raise _refusal(-result, what, wanted)
    return result


def _refusal(error: int, what: str, wanted: int = 0) -> Exception:
    """What a call that the system refuses is to the user, who is told by what limit."""
    if error in (errno.EPERM, errno.ENOSYS):
        return UnsupportedKernelError(error, limits.explain(error, what))
    if error in limits.LIMITS:
        return PagerStartError(limits.explain(error, what, wanted))
    return OSError(error, f"{what}: {os.strerror(error)}")


def _table_entries() -> int:
    """How many entries the table must have room for: all regions lie in this process's address space.

    Where that is not limited the table has room for more than machines have memory, since what is not used
    takes address space only.
    """
    most = limits.address_space()
    return TABLE if most is None else min(TABLE, -(-most // _options.BLOCK_MIN))


def _pidfd_open(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as e:
        raise _refusal(e.errno or errno.EIO, "pidfd_open") from e


class _Undo(contextlib.ExitStack):
    """What ends with a pager; it does so too when an exception in the midst of that leaves some of it."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = True
        self._pid = os.getpid()

    def __del__(self) -> None:
        if self.ending and not at_exit.begun and self._pid == os.getpid():
            self.close()


def _close_client(owned: Owned) -> None:
    lib.us_client_close(owned.pointer, lib.US_END_RESTORE)


def _eventfd(undo: contextlib.ExitStack) -> int:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    undo.callback(os.close, fd)
    return fd


def _open_pagemap(undo: contextlib.ExitStack) -> int:
    """What tells which pages are there; -1 where there is no /proc, and so nothing can be plain."""
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    undo.callback(os.close, fd)
    return fd


def _choose(name: str, wanted: str, best: str, possible: bool, other: str) -> str:
    if wanted == "auto":
        return best if possible else other
    if wanted == best and not possible:
        raise UnsupportedKernelError(
            errno.ENOSYS, f"{name}={wanted!r} is not possible on this kernel; accepted: {other!r}"
        )
    return wanted


def _parse_delays(text: str) -> list[tuple[str, int]]:
    """The parts of "point:usec,point:usec"."""
    out = []
    for part in filter(None, text.split(",")):
        point, _, usec = part.partition(":")
        out.append((point, int(usec)))
    return out


def _itemsize(value: SupportsIndex | None) -> int | None:
    if value is None:
        return None
    accepted = "bytes of a number, from 1 to 65536; 2, 4 and 8 are of use"
    size = parse_integer(value, "itemsize", accepted)
    if not 1 <= size <= 1 << 16:
        raise ValueError(f"itemsize={value!r} is out of range; accepted: {accepted}")
    return size


def _parse_inject(text: str) -> list[tuple[str, int, int]]:
    """The parts of "op:ERRNO:every,op:ERRNO:every"."""
    out = []
    for part in filter(None, text.split(",")):
        op, name, every = part.split(":")
        number = _IO_ERRORS.get(name) or getattr(errno, name)
        out.append((op, int(number), int(every)))
    return out


def _greet(
    sock: socket.socket,
    process: subprocess.Popen[bytes],
    hello: wire.Message,
    fds: dict[str, int],
    timeout: float,
) -> wire.Message:
    """Send the pager process its configuration, and return what it says of itself.

    Raises:
        PagerStartError: it did not become ready in time, or says why it can't.
    """
    failed = "the pager process did not become ready"
    sock.settimeout(timeout)
    try:
        with contextlib.suppress(wire.Closed):  # what it said before it ended can be read still
            wire.send(sock, hello | {"fds": list(fds)}, tuple(fds.values()))
        try:
            answer = wire.receive(sock)
        except wire.Closed:  # of one that did not read ours the kernel tells before it gives us his
            answer = wire.receive(sock)
    except wire.Closed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        raise PagerStartError(
            f"{failed}: process {process.pid} is gone (exit status {process.returncode}); it was run by"
            f" {process.args[0]!r}, and python= or USWAP_PYTHON names another interpreter"  # type: ignore[index]
        ) from None
    except TimeoutError as e:
        raise PagerStartError(f"{failed}: no answer within {timeout:g} s") from e
    except OSError as e:
        raise PagerStartError(f"{failed}: {e}") from e
    if "error" in answer:
        number = f"[Errno {answer['error']}] " if answer["error"] else ""
        raise PagerStartError(f"{failed}: {number}{answer['text']}")
    about: wire.Message = answer["ok"]
    return about


def _reap(pid: int) -> None:
    """Wait for a pager process that was told to end.

    Not by Popen, which the collector may finalise before its pager, and which then warns of a child.
    """
    with contextlib.suppress(ChildProcessError):  # somebody who waits for any child had it
        end, pause = time.monotonic() + 5, 0.0005
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.02)


def _keep_for_ever(thing: object) -> None:
    """Have `thing` outlive the interpreter, so that nothing of it is ever freed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _at_exit() -> None:
    """Leave all as it is: faults are served until the process is gone.

    A wrapped buffer must not be freed before: its addresses would get another owner.
    """
    at_exit.begun = True
    for pager in list(_alive):
        for region in list(pager._wrapped.values()):
            _keep_for_ever(region)
        _keep_for_ever(pager)


def _in_child() -> None:
    """Nothing of the parent's works here, and its memory must not be mistaken for ours.

    The parent's descriptors are closed: memory and swap file must go when the parent goes. What is
    wrapped stays referenced for ever: freed, its pages, which the child does not have, would be
    handed out again by the allocator.
    """
    for pager in list(_alive):
        for region in pager.regions:
            lib.us_child_cover(region.address, region.length, region._id)
        for region in list(pager._wrapped.values()):
            _keep_for_ever(region)
        lib.us_client_in_child(pager._client)
        pager._socket.detach()
        for fd in pager._descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
    _alive.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
