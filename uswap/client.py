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
import errno
import operator
import os
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import options as _options
from . import swapfile
from . import tiers as _tiers
from . import trace as _trace
from ._core import ffi, lib
from .channel import Channel
from .errors import (
    ClosedError,
    DegradedWarning,
    LimitError,
    PagerDied,
    PagerStartError,
    UnsupportedKernelError,
)
from .region import OwnRegion, Region, WrappedRegion, at_exit
from .sizes import format_size, is_bool, parse_size
from .stats import Stats

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Paged", "Pager", "paged"]

OUTBOX = 8 << 20  # bytes; four of the largest blocks
TABLE = 1 << 28  # entries that the sparse table has room for: 1 TiB in blocks of 4 KiB
LIMIT_MIN = 1 << 20  # and at least this many blocks of a region:
LIMIT_BLOCKS = 16

_NUMBERS = "iufcmM"  # kinds of dtypes whose items are one number each
_IO_OPS = {"read": 0, "write": 1}
_IO_ERRORS = {"SHORT": 1000, "FLIP": 1001, "LATE": 1002, "SLOW": 1003}
_UFFD = {"auto": 0, "device": 1, "syscall": 2, "user-mode": 3}
_alive: weakref.WeakSet[Pager] = weakref.WeakSet()


class Pager:
    """Pages the regions made by it through a compressed pool, within `limit` resident bytes.

    A context manager; leaving it brings everything that is still referenced back into RAM.

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
        limit: int | str | float | None = None,
        pool: int | str | float | None = None,
        swapfile: str | os.PathLike[str] | None = None,
        swap: int | str | None = None,
        *,
        tiers: Sequence[_tiers.Pool | _tiers.File] | None = None,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        self._closed = True  # until all is there
        if swapfile is not None:
            swapfile = os.fspath(swapfile)
        if options.get("trace") is not None:
            options["trace"] = os.fspath(options["trace"])
        options |= {"pool": pool, "swapfile": swapfile, "swap": swap}
        self._tiers = _tiers.resolve(tiers, options, overwrite=overwrite)
        rest = self._tiers.pools
        self._options = _options.resolve(
            limit=limit, last_pool=rest[-1][0] if rest else None, **(options | self._tiers.short)
        )
        o = self._options
        self._pools = ((o.pool, o.codec, o.level), *rest)
        self._overwrite = self._tiers.overwrite
        self._check_limit(self._options.block, "block")
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._gauges = threading.RLock()  # while the statistics are read they stay mapped
        self._regions: dict[int, weakref.ref[Region]] = {}
        # What it takes to end a region of which only a finaliser knows any more: the collector clears
        # weak references first, and may finalise a pager before its regions.
        self._spans: dict[int, tuple[int, int, int, bool]] = {}
        with contextlib.ExitStack() as undo:
            self._start(undo)
            self._undo = undo.pop_all()
        self._closed = False
        _alive.add(self)

    # ---- begin and end

    def _start(self, undo: contextlib.ExitStack) -> None:
        o = self._options
        uffd = self._open_uffd(undo)
        layout = ffi.new("us_layout_t *")
        budgets = ffi.new("uint64_t[]", _tiers.POOLS)
        for k, (size, _codec, _level) in enumerate(self._pools):
            budgets[k] = size
        space = _check(lib.us_space_create(OUTBOX, budgets, TABLE, layout), "memfd")
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
        self._pagemap = _open_pagemap(undo) if late else -1
        report = ffi.new("us_probe_report_t *")
        lib.us_probe_kernel(report)
        self._take = _choose("take", o.take, "move", bool(self._uffd.enabled & (1 << 16)), "copy")
        self._drop = _choose("drop", o.drop, "vector", report.self_advice_errno == 0, "single")
        out = ffi.new("us_client_t **")
        _check(
            lib.us_client_open(
                out,
                uffd,
                space,
                doorbell,
                notify,
                lib.US_DROP_VECTOR if self._drop == "vector" else lib.US_DROP_SINGLE,
            ),
            "the mover",
        )
        self._client = out[0]
        undo.callback(lib.us_client_close, self._client)
        staging_len = ffi.new("uint64_t *")
        staging = lib.us_client_staging(self._client, staging_len)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        with theirs:
            try:
                process = self._spawn(theirs)
            except OSError as e:
                raise PagerStartError(f"the pager process could not be started: {e}") from e
        self._channel = Channel(ours, process)
        self._pager_pid = process.pid
        undo.callback(self._channel.end)
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
            self._about = self._channel.call(
                "hello",
                hello | {"fds": list(fds)},
                fds=tuple(fds.values()),
                timeout=o.pager_timeout,
            )
        except (PagerDied, OSError) as e:  # TimeoutError is one
            raise PagerStartError(f"the pager process did not become ready: {e}") from e
        self._pidfd = os.pidfd_open(process.pid)
        undo.callback(os.close, self._pidfd)
        lib.us_client_watch(self._client, self._pidfd)

    def _open_uffd(self, undo: contextlib.ExitStack) -> int:
        self._uffd = ffi.new("us_uffd_t *")
        error = lib.us_uffd_open(_UFFD[self._options.uffd], self._uffd)
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
        return undo.enter_context(_trace.create(self._options.trace, limit=self._options.limit))

    def _spawn(self, sock: socket.socket) -> subprocess.Popen[bytes]:
        # `-m uswap.pager`, but with this process's module path: what lies in the current directory
        # must not be imported in its place.
        start = (
            f"import sys; sys.path[:] = {sys.path!r}; from uswap.pager.__main__ import main; main()"
        )
        fd = sock.fileno()
        return subprocess.Popen(
            [sys.executable, "-c", start, str(fd)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Bring everything that is still referenced back into RAM, and end the pager process.

        May be called again. Arrays and regions stay valid; they are ordinary memory then, so there
        must be room for them.
        """
        if self._closed or self._pid != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            for ref in list(self._regions.values()):
                region = ref()
                if region is not None:
                    region.release()
            for number in list(self._spans):
                self._end_span(number, restore=True)
            self._last_stats = self._read_stats()
            with self._gauges:
                self._closed = True
            _alive.discard(self)
            lib.us_client_watch(self._client, -1)  # its end is expected from here on
            self._undo.close()

    def _refuse_overlap(self, address: int, length: int) -> None:
        """Raise OSError (EBUSY) if another pager of this process has some of it."""
        for other in list(_alive):
            if other is self:
                continue  # the pager process looks
            for begin, n, _entries, _huge in list(other._spans.values()):
                if begin < address + length and address < begin + n:
                    raise OSError(errno.EBUSY, "another pager has it")

    def _end_span(self, number: int, *, restore: bool, mapped: bool = True) -> None:
        if number not in self._spans:
            return  # close() was faster than the region's finaliser
        address, length, entries, huge = self._spans[number]
        # Registered until nothing is on its way out, so that what finds no room can go back.
        step = "restore" if restore else "freeze"
        self._call(step, _whole=True, region=number, entries=entries)
        error = 0
        if mapped:
            error = lib.us_client_unregister(self._client, address, length, int(huge))
        self._call("remove", _whole=True, region=number, entries=entries)
        del self._spans[number]
        del self._regions[number]
        if error < 0 and error != -errno.ENOMEM:
            raise OSError(-error, f"userfaultfd unregister: {os.strerror(-error)}")

    def __enter__(self) -> Pager:
        self._check_open()
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
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        self.close()

    def __repr__(self) -> str:
        o = self._options
        return (
            f"<uswap.Pager limit={format_size(o.limit)}, "
            f"pool={format_size(sum(size for size, _, _ in self._pools))}, "
            f"{'closed' if self._closed else f'{len(self._regions)} regions'}>"
        )

    # ---- talking to the pager

    def _check_open(self) -> None:
        if at_exit.begun:
            raise ClosedError("the interpreter is ending")
        if self._pid != os.getpid():
            raise ClosedError("the pager belongs to the parent process; a forked child has none")
        if self._closed:
            raise ClosedError("the pager is closed")

    def _call(self, op: str, *, _whole: bool = False, **arguments: Any) -> Any:
        """Ask the pager process; see Channel.call."""
        if at_exit.begun:
            raise ClosedError("the interpreter is ending")
        try:
            return self._channel.call(op, arguments, whole=_whole)
        except (PagerDied, OSError):
            if self._closed:
                raise ClosedError("the pager was closed meanwhile") from None
            raise

    def _check_limit(self, block: int, name: str) -> None:
        limit = self._options.limit
        least = max(LIMIT_MIN, LIMIT_BLOCKS * block)
        if limit < least:
            raise LimitError(
                f"limit={limit} is too small for {name}={format_size(block)}; accepted: at least "
                f"{format_size(least)}, which is {LIMIT_BLOCKS} blocks and 1 MiB or more"
            )

    def _block(self, block: int | str | None) -> int:
        if block is None:
            return self._options.block
        size = _options.parse_block(block)
        self._check_limit(size, "block")
        return size

    # ---- regions

    def region(
        self, size: int | str, *, block: int | str | None = None, itemsize: int | None = None
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
        self._check_open()
        length = parse_size(size, "size", minimum=1)
        return OwnRegion._make(self, length, self._block(block), _itemsize(itemsize) or 0)

    def wrap(
        self, buffer: Any, *, block: int | str | None = None, itemsize: int | None = None
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
        self._check_open()
        return WrappedRegion._make(self, buffer, self._block(block), _itemsize(itemsize))

    def empty(
        self,
        shape: int | tuple[int, ...],
        dtype: npt.DTypeLike = float,
        *,
        order: Any = "C",
        block: int | str | None = None,
    ) -> np.ndarray[Any, Any]:
        """Return a paged array of zeros (as from numpy.empty, but nothing is ever uninitialised).

        Args:
            shape: int or tuple of ints.
            dtype: any type without Python objects.
            order: "C" or "F".
            block: as for region().
        """
        numpy = _numpy()
        self._check_open()
        kind = numpy.dtype(dtype)
        if kind.hasobject:
            raise TypeError(
                f"dtype={kind} holds Python objects; accepted: types of plain numbers or bytes"
            )
        shape = (shape,) if not isinstance(shape, tuple | list) else tuple(shape)
        if any(n < 0 for n in shape):
            raise ValueError(f"shape={shape} has a negative dimension; accepted: 0 or more")
        nbytes = kind.itemsize
        for n in shape:
            nbytes *= int(n)
        if nbytes == 0:
            return numpy.empty(shape, kind, order)  # type: ignore[no-any-return]
        region = self.region(
            nbytes, block=block, itemsize=kind.itemsize if kind.kind in _NUMBERS else None
        )
        return numpy.ndarray(shape, kind, buffer=region, order=order)  # type: ignore[no-any-return]

    def zeros(self, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        """Return a paged array of zeros; arguments as for empty()."""
        return self.empty(*args, **kwargs)

    def full(
        self,
        shape: int | tuple[int, ...],
        value: Any,
        dtype: npt.DTypeLike = None,
        *,
        order: Any = "C",
        block: int | str | None = None,
    ) -> np.ndarray[Any, Any]:
        """Return a paged array filled with `value`; the other arguments as for empty()."""
        numpy = _numpy()
        if dtype is None:
            dtype = numpy.asarray(value).dtype
        made = self.empty(shape, dtype, order=order, block=block)
        made[...] = value
        return made

    def array(
        self, source: Any, dtype: npt.DTypeLike = None, *, block: int | str | None = None
    ) -> np.ndarray[Any, Any]:
        """Return a paged copy of `source` (anything that numpy.asarray takes)."""
        numpy = _numpy()
        source = numpy.asarray(source, dtype)
        order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
        made = self.empty(source.shape, source.dtype, order=order, block=block)
        made[...] = source
        return made

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
        for ref in list(self._regions.values()):
            region = ref()
            if isinstance(region, WrappedRegion) and region.wraps(array):
                return region
        raise ValueError(f"array={type(array).__name__} lies in no region of this pager")

    @property
    def regions(self) -> list[Region]:
        """The regions that are paged now."""
        return [region for ref in list(self._regions.values()) if (region := ref()) is not None]

    # ---- what there is to know

    @property
    def pid(self) -> int:
        """The pager process's id."""
        return self._pager_pid

    @property
    def limit(self) -> int:
        """Resident bytes of all regions together, at most."""
        return self._options.limit

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
        with self._gauges:
            if self._closed:
                return self._last_stats
            self._check_open()
            return self._read_stats()

    def _read_stats(self) -> Stats:
        raw = ffi.new("us_stats_t *")
        lib.us_client_stats(self._client, raw)
        client = self._client

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
        broken = self._call("check")
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
    limit: int | str | float | None = None,
    pool: int | str | float | None = None,
    **options: Any,
) -> Iterator[Paged]:
    """Page buffers that exist, where they lie, for the length of a with block.

    Args:
        buffers: as for Pager.wrap().
        limit, pool, options: as for Pager.

    Yields:
        The pager and the regions. Afterwards the buffers are ordinary memory again.
    """
    with Pager(limit=limit, pool=pool, **options) as pager:
        yield Paged(pager, [pager.wrap(buffer) for buffer in buffers])


# ---- helpers


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def _eventfd(undo: contextlib.ExitStack) -> int:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    undo.callback(os.close, fd)
    return fd


def _open_pagemap(undo: contextlib.ExitStack) -> int:
    """What tells which pages are there; -1 where there is no /proc, and so nothing can stay plain."""
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


def _itemsize(value: int | None) -> int | None:
    if value is None:
        return None
    accepted = "accepted: bytes of a number, from 1 to 65536; 2, 4 and 8 are of use"
    if is_bool(value) or not hasattr(value, "__index__"):
        raise TypeError(f"itemsize={value!r} is a {type(value).__name__}; {accepted}")
    size = operator.index(value)
    if not 1 <= size <= 1 << 16:
        raise ValueError(f"itemsize={value!r} is out of range; {accepted}")
    return size


def _parse_inject(text: str) -> list[tuple[str, int, int]]:
    """The parts of "op:ERRNO:every,op:ERRNO:every"."""
    out = []
    for part in filter(None, text.split(",")):
        op, name, every = part.split(":")
        number = _IO_ERRORS.get(name) or getattr(errno, name)
        out.append((op, int(number), int(every)))
    return out


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as e:
        raise ImportError("arrays need numpy: pip install 'uswap[numpy]'") from e
    return numpy


def _at_exit() -> None:
    """Leave all as it is: faults are served until the process is gone."""
    at_exit.begun = True
    for pager in list(_alive):
        pager._channel.leave()


def _in_child() -> None:
    """Nothing of the parent's works here, and its memory must not be mistaken for ours."""
    for pager in list(_alive):
        for ref in list(pager._regions.values()):
            region = ref()
            if region is not None:
                lib.us_child_cover(region.address, region.length)
        pager._channel.forget()
        with contextlib.suppress(OSError):
            os.close(pager._pidfd)
    _alive.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
