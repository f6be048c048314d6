# SPDX-License-Identifier: MIT
"""The client half: a pager process, the mover thread, and the regions that they page, begun and ended.

The order in which things begin and end is what this module is about, since a fault that nobody serves
is a thread that stands for ever:

    begin   userfaultfd, space, mover, pager process; then regions: known to the pager, registered,
            then active.
    end     each region: nothing leaves any more, all of it comes back, unregistered, forgotten; then
            the mover stops, then the pager process ends, then the descriptors go.

At interpreter exit nothing is swapped in: the pager serves until the process is gone, and sees that
by a pidfd. In a forked child nothing works and nothing is shared: regions are not there (a touch is
SIGSEGV), and every method raises ClosedError.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import codecs, handshake, launch, limits, swapfile
from . import options as _options
from . import tiers as _tiers
from . import trace as _trace
from ._core import ffi, lib
from .arrays import Arrays
from .buffers import export as _export
from .connection import LIMIT_BLOCKS, LIMIT_MIN, at_exit
from .descriptors import SIGBUS, UFFD, open_eventfd, open_pagemap, open_pidfd
from .errors import (
    DegradedWarning,
    PagerStartError,
    StillPagedWarning,
    UnknownVariableWarning,
    UnsupportedKernelError,
    UswapError,
)
from .injection import IO_OPS, delay_here, fail_here, parse_delays, parse_inject
from .limits import check, refusal
from .owned import Owned
from .paths import check_parent, path_of
from .region import WrappedRegion
from .regions import alive, lingering
from .sizes import Size, SizeOrPart, format_size, free_memory, parse_size

if TYPE_CHECKING:
    # Of Python 3.11; type checkers know it whether or not it is installed.
    from typing_extensions import Unpack

    from .options import PagerOptions

    class PagedOptions(PagerOptions, total=False):
        """What paged() takes beside limit and pool."""

        swapfile: str | os.PathLike[str] | None
        swap: Size | None
        tiers: Sequence[_tiers.Pool | _tiers.File] | None
        overwrite: bool


__all__ = ["Paged", "Pager", "paged"]

OUTBOX = 8 << 20  # bytes; four of the largest blocks
ROOMY = 16  # of limited address space, the part that a client may map of the space
TABLE = 1 << 28  # entries that the sparse table has room for, at most: 1 TiB in blocks of 4 KiB
#: Bytes that are left free when all is swapped in, or an eighth of what is free.
SPARE_MIN = 64 << 20


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
        super().__init__()
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
        alive.add(self)
        self._undo.ending = False

    # ---- begin

    def _start(self, undo: contextlib.ExitStack) -> None:
        o = self._options
        uffd = self._open_uffd(undo)
        layout = ffi.new("us_layout_t *")
        budgets = ffi.new("uint64_t[]", _tiers.POOLS)
        for k, (size, _codec, _level) in enumerate(self._pools):
            budgets[k] = size
        space = lib.us_space_create(OUTBOX, budgets, _table_entries(), layout)
        check(space, "memfd_create", layout.size)
        undo.callback(os.close, space)
        most = limits.address_space()
        self._roomy = most is None or layout.size <= most // ROOMY
        sigbus = self._open_sigbus(undo)
        doorbell, notify = open_eventfd(undo), open_eventfd(undo)
        delays, inject = parse_delays(o.delays), parse_inject(o.inject)
        delay_here(delays)
        fail_here(inject)
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
        self._pagemap = open_pagemap(undo)
        report = ffi.new("us_probe_report_t *")
        lib.us_probe_kernel(report)
        check(-report.pidfd_errno, "pidfd_open")  # each process sees the other's end by one
        self._take = _choose("take", o.take, "move", bool(self._uffd.enabled & (1 << 16)), "copy")
        self._drop = _choose("drop", o.drop, "vector", report.self_advice_errno == 0, "single")
        self._owned = Owned("client", lib.us_client_new())
        self._client = self._owned.pointer
        undo.callback(_close_client, self._owned)
        check(
            lib.us_client_open(
                self._client,
                uffd,
                sigbus,
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
        undo.callback(launch.reap, process.pid)
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
            "inject": [row for row in inject if row[0] not in IO_OPS],
            "shuffle": o.shuffle,
            "late": late,
            "io": o.io,
            "io_inject": [(IO_OPS[op], err, n) for op, err, n in inject if op in IO_OPS],
        }
        if self._swapfile is not None:
            hello |= {"swap": self._swapfile.size, "segment": o.segment}
        fds = {"uffd": uffd, "space": space, "doorbell": doorbell, "notify": notify}
        if sigbus >= 0:
            fds["sigbus"] = sigbus
        if self._swapfile is not None:
            fds["swap"] = self._swapfile.fd
        if self._pagemap >= 0:
            fds["pagemap"] = self._pagemap
        if self._trace is not None:
            fds["trace"] = self._trace.fd
        try:
            self._about = handshake.greet(ours, process, hello, fds, o.pager_timeout)
        finally:
            process.returncode = 0  # see launch.reap
        self._pidfd = open_pidfd(process.pid)
        undo.callback(os.close, self._pidfd)
        # The first to end, so that nothing watches for the pager's end any more.
        undo.callback(_close_client, self._owned)
        check(lib.us_client_attach(self._client, ours.fileno(), self._pidfd), "the control socket")
        self._descriptors = [*fds.values(), ours.fileno(), self._pidfd]
        # Whoever ends it is the core; Popen has nothing to warn of.
        self._socket = ours

    def _open_uffd(self, undo: contextlib.ExitStack) -> int:
        self._uffd = ffi.new("us_uffd_t *")
        error = lib.us_uffd_open(UFFD[self._options.uffd], 0, self._uffd)
        if -error in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise refusal(-error, "userfaultfd")
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
        return uffd

    def _open_sigbus(self, undo: contextlib.ExitStack) -> int:
        """The userfaultfd of inline regions; -1: there can be none."""
        found = ffi.new("us_uffd_t *")
        error = lib.us_uffd_open(int(self._uffd.how), 1, found)
        if -error in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise refusal(-error, "userfaultfd")
        if error == 0:
            undo.callback(os.close, int(found.fd))
        self._can_inline = error == 0 and bool(found.enabled & SIGBUS)
        if self._faults() == "message" and self._uffd.how == lib.US_UFFD_USER_MODE:
            warnings.warn(
                "no privilege for a full userfaultfd: with faults='message' a system call on evicted"
                " memory fails with EFAULT (hold the range with region.pinned() around it);"
                " faults='inline' has no such limit",
                DegradedWarning,
                stacklevel=4,
            )
        if not self._can_inline:
            return -1
        for _size, codec, _level in self._pools:
            if codec != "none":  # one that does not load is the pager's to use
                codecs.load(lib, codec)
        return int(found.fd)

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

    # ---- end

    def close(self, restore: bool = False, discard: bool = False) -> None:
        """End the pager: with the last array, where swapping in all of them would not fit.

        What is still referenced is swapped in, where it is ordinary memory, if there is room
        to spare for that (of the host and of the process's cgroups). Else the pager goes on serving it
        within the limit, a StillPagedWarning says so, and it ends when the last region does; it takes
        no new ones. May be called again.

        Args:
            restore: swap in all of it, whether or not there is room to spare.
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
                    lingering.add(self)
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

    def _finish(self) -> None:
        self._undo.ending = True
        self._closed = True
        alive.discard(self)
        lingering.discard(self)
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


def _table_entries() -> int:
    """How many entries the table must have room for: all regions lie in this process's address space.

    Where that is not limited the table has room for more than machines have memory, since what is not used
    takes address space only.
    """
    most = limits.address_space()
    return TABLE if most is None else min(TABLE, -(-most // _options.BLOCK_MIN))


def _choose(name: str, wanted: str, best: str, possible: bool, other: str) -> str:
    if wanted == "auto":
        return best if possible else other
    if wanted == best and not possible:
        raise UnsupportedKernelError(
            errno.ENOSYS, f"{name}={wanted!r} is not possible on this kernel; accepted: {other!r}"
        )
    return wanted


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


def _keep_for_ever(thing: object) -> None:
    """Have `thing` outlive the interpreter, so that nothing of it is ever freed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _at_exit() -> None:
    """Leave all as it is: faults are served until the process is gone.

    A wrapped buffer must not be freed before: its addresses would get another owner.
    """
    at_exit.begun = True
    for pager in list(alive):
        for region in list(pager._wrapped.values()):
            _keep_for_ever(region)
        _keep_for_ever(pager)


def _in_child() -> None:
    """Nothing of the parent's works here, and its memory must not be mistaken for ours.

    The parent's descriptors are closed: memory and swap file must go when the parent goes. What is
    wrapped stays referenced for ever: freed, its pages, which the child does not have, would be
    handed out again by the allocator.
    """
    for pager in list(alive):
        for region in pager.regions:
            lib.us_child_cover(region.address, region.length, region._id)
        for region in list(pager._wrapped.values()):
            _keep_for_ever(region)
        lib.us_client_in_child(pager._client)
        pager._socket.detach()
        for fd in pager._descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
    alive.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_in_child)
