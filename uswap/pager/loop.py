# SPDX-License-Identifier: MIT
"""The asyncio loop that services faults.

The problem: a fault is a thread that stands still, so most faults must be settled within a few
microseconds, which no coroutine is; but some have to wait, for the mover, for a worker or for room, and
must not keep the others waiting.

So the descriptor's reader callback is one call of C, ``us_pager_step``, which drains the messages,
settles what needs no waiting, and returns the rest as events. Each of these becomes a task here. A task
takes its entry's lock, asks C again, and awaits what C names: the entry's unlocking, or progress. The
lock makes the second fault on a block wait for the first; when its turn comes it finds the block there.

Refused: a coroutine for each fault (20 us before anything is done), and a thread for each waiting fault
(a wake-up across CPUs costs more than most waits).

Every wait has a time-out after which C is asked again, so that a notification that was lost costs
milliseconds and not a hang.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from .. import codecs, limits, wire
from .._core import ffi, lib
from ..sizes import format_size
from .say import say

MAX_EVENTS = 128
NO_ENTRY = 2**32 - 1
IO = {"auto": 0, "uring": 1, "threads": 2}  # US_IO_*
NAMED = 8  # lost blocks, and failed writes, that get a line each
TIERS = dict.fromkeys((1, 2, 3), "out of the pool") | {4: "from the swap file"}  # US_TIER_*
LOST = 0.05  # seconds after which a wait asks again by itself
GONE = 0.2  # seconds between two looks whether a client that hung up is still there
MOVER_NAME = "uswap-mover"  # what the mover calls itself
STRAY_TRIES = 400  # 5 ms each: a region may be about to be added, or has just gone


class EntryLocks:
    """A lock for each entry that is in use, and none for the others."""

    def __init__(self) -> None:
        self._locks: dict[int, tuple[asyncio.Lock, int]] = {}

    @contextlib.asynccontextmanager
    async def held(self, entry: int) -> AsyncIterator[None]:
        """Hold the entry's lock."""
        lock, users = self._locks.get(entry, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[entry] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            _, users = self._locks[entry]
            if users == 1:
                del self._locks[entry]
            else:
                self._locks[entry] = (lock, users - 1)


class Loop:
    """Serves one client.

    Args:
        sock: the control socket, non-blocking.
        hello: the client's first message: configuration.
        fds: the descriptors that came with it.
    """

    def __init__(self, sock: socket.socket, hello: wire.Message, fds: dict[str, int]) -> None:
        self._sock = sock
        self._fds = fds
        self._done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks = EntryLocks()
        self._unlocked: dict[int, asyncio.Future[None]] = {}
        self._progress: asyncio.Future[None] | None = None
        self._events = ffi.new("us_event_t[]", MAX_EVENTS)
        self._loop = asyncio.get_running_loop()
        self._mover = hello["mover_tid"]
        self._client = hello["pid"]
        try:
            self._client_pid = os.pidfd_open(hello["pid"])
        except OSError as e:
            raise OSError(e.errno, limits.explain(e.errno or 0, "pidfd_open")) from e
        self._inject(hello)
        self._lost_blocks = 0
        found = {codec: self._load_codec(codec) for _size, codec, _level in hello["pools"]}
        self._codec = ", ".join(found.values())
        self._shuffle = "off" if hello["shuffle"] == "off" else codecs.shuffled_by(lib)
        self._failed_writes = 0
        config, client = ffi.new("us_pager_config_t *"), ffi.new("us_mm_config_t *")
        for name in ("workers", "follow", "servers"):
            setattr(config, name, hello[name])
        for pool, (size, codec, level) in zip(config.pool, hello["pools"], strict=False):
            pool.budget, pool.codec, pool.level = size, codecs.CODECS[codec], level
        config.shuffle = self._shuffle != "off"
        for name in (
            "client_pid",
            "mover_tid",
            "staging",
            "staging_len",
            "limit",
            "readahead",
            "take",
            "late",
        ):
            setattr(client, name, hello[name])
        client.uffd = fds["uffd"]
        client.sigbus = fds.get("sigbus", -1)
        client.space_fd = fds["space"]
        client.doorbell = fds["doorbell"]
        client.notify = fds["notify"]
        client.pagemap = fds.get("pagemap", -1)
        out = ffi.new("us_pager_t **")
        if (error := -lib.us_pager_open(out, config, client)) > 0:
            # What it keeps beside the table, and the threads' stacks, come on top.
            wanted = os.fstat(fds["space"]).st_size
            pools = sum(size for size, _codec, _level in hello["pools"])
            raise OSError(
                error,
                limits.explain(
                    error,
                    f"the pager's threads, and pools of {format_size(pools)} that lie sparsely in a"
                    " multiple of that",
                    wanted,
                ),
            )
        self._pager = out[0]
        if "swap" in fds:
            check(
                lib.us_pager_swap(
                    self._pager, fds["swap"], hello["swap"], hello["segment"], IO[hello["io"]]
                ),
                "swap file",
            )
            for op, error, every in hello["io_inject"]:
                check(lib.us_pager_io_inject(self._pager, op, error, every), "inject io")
        if "trace" in fds:
            check(lib.us_pager_trace(self._pager, fds["trace"]), "trace")
        self._ops: dict[int, Callable[..., Awaitable[Any]]] = {
            lib.US_OP_ADD: self._add,
            lib.US_OP_ACTIVATE: self._activate,
            lib.US_OP_EVICT: self._evict,
            lib.US_OP_PREFETCH: self._prefetch,
            lib.US_OP_MIGRATE: self._migrate,
            lib.US_OP_VERIFY: self._verify,
            lib.US_OP_PIN: self._pin,
            lib.US_OP_UNPIN: self._unpin,
            lib.US_OP_FREEZE: self._freeze,
            lib.US_OP_RESTORE: self._restore,
            lib.US_OP_REMOVE: self._remove,
            lib.US_OP_CHECK: self._check,
            lib.US_OP_LIMIT: self._limit,
            lib.US_OP_POOL: self._pool,
            lib.US_OP_BYE: self._bye,
        }

    def _inject(self, hello: wire.Message) -> None:
        for point, usec in hello["delays"]:
            check(lib.us_delay_set(point.encode(), usec), f"delay {point}")
        for op, error, every in hello["inject"]:
            check(lib.us_inject_set(op.encode(), error, every), f"inject {op}")

    def _load_codec(self, wanted: str) -> str:
        if wanted == "none":
            return "none"
        errors = []
        for candidate in codecs.find(wanted):
            error = lib.us_codec_load(codecs.CODECS[wanted], os.fsencode(candidate.path))
            if error == 0:
                return candidate.origin
            errors.append(f"{candidate.origin}: {os.strerror(-error)}")
        raise OSError(38, f"codec {wanted} can't be loaded ({'; '.join(errors)})")

    def about(self) -> wire.Message:
        """What the client is told when the pager is ready."""
        engine = {1: "io_uring", 2: "threads"}.get(lib.us_pager_io_engine(self._pager), "none")
        return {"pid": os.getpid(), "codec": self._codec, "shuffle": self._shuffle, "io": engine}

    async def run(self) -> None:
        """Serve until the client says bye, or is gone."""
        readers: dict[int, Callable[[], None]] = {
            self._fds["uffd"]: self._step,
            self._sock.fileno(): self._requests,
            self._client_pid: self._done.set,
        }
        rings = [self._fds["notify"], lib.us_pager_worker_fd(self._pager)]
        if lib.us_pager_io_fd(self._pager) >= 0:
            rings.append(lib.us_pager_io_fd(self._pager))
        readers |= {fd: functools.partial(self._rung, fd) for fd in rings}
        for fd, reader in readers.items():
            self._loop.add_reader(fd, reader)
        try:
            await self._done.wait()
        finally:
            for fd in readers:
                self._loop.remove_reader(fd)

    def close(self) -> None:
        """Free all."""
        for task in self._tasks:
            task.cancel()
        if missed := lib.us_pager_trace_end(self._pager):
            say(f"the trace lacks {missed} records")
        lib.us_pager_close(self._pager)
        for fd in self._fds.values():
            os.close(fd)
        os.close(self._client_pid)
        self._sock.close()

    # ---- faults

    def _rung(self, fd: int) -> None:
        lib.us_pager_rung(self._pager, fd)
        self._step()

    def _step(self) -> None:
        n = lib.us_pager_step(self._pager, self._events, MAX_EVENTS)
        for i in range(n):
            # Each event is a thread that waits, or may be: whatever one of them meets, the others are served.
            try:
                self._event(self._events[i])
            except Exception as e:
                self._fatal(f"an event of kind {self._events[i].kind} could not be handled: {e!r}")

    def _event(self, event: Any) -> None:
        kind = event.kind
        if kind == lib.US_EV_FAULT:
            fault = ffi.new("us_event_t *", event)
            self._start(self._serve(fault))
        elif kind == lib.US_EV_UNLOCKED:
            waiter = self._unlocked.pop(event.entry, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        elif kind == lib.US_EV_PROGRESS:
            self._signal_progress()
        elif kind == lib.US_EV_NOROOM:
            say(
                "the pool is full and nothing else has room; blocks stay resident, over the limit if"
                " need be (a larger pool= mends it)"
            )
        elif kind == lib.US_EV_IO:
            self._not_written(event.error)
        elif kind == lib.US_EV_TRACE:
            say(f"the trace can't be written any more ({os.strerror(event.error)})")
        elif kind == lib.US_EV_LOST:
            self._lost(event)
        elif kind == lib.US_EV_GONE:
            self._done.set()

    def _fatal(self, text: str) -> None:
        """End the process. A thread that nobody serves stands for ever: better a loud end."""
        say(f"{text}; the pager process ends")
        os._exit(70)

    def _not_written(self, error: int) -> None:
        if error == errno.ENOSPC:  # comes once
            say("the swap file is full: blocks stay in the pool until there is room again")
            return
        self._failed_writes += 1
        if self._failed_writes <= NAMED:
            say(
                f"a write to the swap file failed ({os.strerror(error)}); its blocks stay in the pool"
            )
        elif self._failed_writes == NAMED + 1:
            say("more writes to the swap file fail; stats().write_errors counts them")

    def _lost(self, event: Any) -> None:
        self._lost_blocks += 1
        if self._lost_blocks <= NAMED:
            say(
                f"a block can't be read back {TIERS.get(event.tier, 'once more')}:"
                f" region {event.region}, offset {event.offset}, {event.length} bytes"
                f" (address {event.addr:#x}); a touch of it raises SIGBUS"
            )
        elif self._lost_blocks == NAMED + 1:
            say("more blocks can't be read back; stats().lost counts them")
        if event.error:  # a kernel before 6.6 can't mark the pages
            self._fatal(f"and can't be marked ({os.strerror(event.error)})")

    def _signal_progress(self) -> None:
        waiter, self._progress = self._progress, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _start(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fatal(f"a fault's task failed: {task.exception()!r}")

    async def _serve(self, fault: Any) -> None:
        # The mover holds up whoever has the entry's lock, and strays have no entry.
        alone = fault.tid == self._mover or fault.entry == NO_ENTRY
        async with contextlib.nullcontext() if alone else self._locks.held(fault.entry):
            delay, tries = 0.0005, 0
            while True:
                answer = lib.us_pager_serve(self._pager, fault)
                if answer == lib.US_DONE:
                    return
                if answer == lib.US_WAIT_ENTRY:
                    await self._wait_unlocked(fault.entry)
                elif answer == lib.US_WAIT_ROOM:
                    await self._wait_progress()
                elif answer == lib.US_STRAY:
                    tries += 1
                    if tries == STRAY_TRIES:
                        lib.us_pager_drop(self._pager, fault)
                        return
                    await asyncio.sleep(0.005)
                else:
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, LOST)

    async def _wait_unlocked(self, entry: int) -> None:
        waiter = self._unlocked.get(entry)
        if waiter is None:
            waiter = self._unlocked[entry] = self._loop.create_future()
        await asyncio.wait([waiter], timeout=LOST)
        if not waiter.done():
            self._unlocked.pop(entry, None)
            self._step()

    async def _wait_progress(self) -> None:
        if self._progress is None:
            self._progress = self._loop.create_future()
        waiter = self._progress
        await asyncio.wait([waiter], timeout=LOST)
        if not waiter.done():
            self._step()

    # ---- requests

    def _requests(self) -> None:
        try:
            while True:
                data = self._sock.recv(wire.LARGEST)
                if not data:
                    raise wire.Closed
                request = ffi.new("us_request_t *")
                if len(data) == ffi.sizeof("us_request_t"):
                    ffi.memmove(request, data, len(data))
                    self._start(self._answer(request))
        except BlockingIOError:
            return
        except (wire.Closed, ConnectionError):
            self._loop.remove_reader(self._sock.fileno())
            self._start(self._hung_up())

    async def _hung_up(self) -> None:
        """End when the client's memory is gone, now that nobody asks any more.

        A process that ends closes its files after its memory, and a pidfd tells of it. One that runs
        another program (exec) has no mover any more. But one whose other code has closed the
        descriptors lives on, and its threads fault: they are served until it finds that out.
        """
        while self._has_mover():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(GONE)
        self._done.set()

    def _has_mover(self) -> bool:
        try:
            with open(f"/proc/{self._client}/task/{self._mover}/comm") as file:
                return file.read().strip() == MOVER_NAME
        except OSError:
            return False

    async def _answer(self, request: Any) -> None:
        reply = ffi.new("us_reply_t *", {"id": request.id})
        try:
            op = self._ops.get(request.op)
            if op is None:
                raise OSError(errno.EINVAL, f"unknown request {request.op}")
            values = await op(request.region, *request.arg)
            reply.value = tuple(values or ())
        except OSError as e:
            reply.error = e.errno or errno.EIO
            reply.text = (e.strerror or str(e)).encode(errors="replace")[:200]
        except (TypeError, ValueError, OverflowError) as e:
            reply.error = errno.EINVAL
            reply.text = f"request {request.op}: {e!r}".encode(errors="replace")[:200]
        while True:
            try:
                self._sock.send(ffi.buffer(reply))
                return
            except BlockingIOError:  # the client reads slowly
                await asyncio.sleep(0.001)
            except OSError:
                return

    async def _add(
        self,
        _region: int,
        address: int,
        length: int,
        block: int,
        item: int,
        resident: int,
        handled: int,
        *_: int,
    ) -> tuple[int, ...]:
        first, entries = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        region = check(
            lib.us_pager_add(self._pager, address, length, block, item, handled, first, entries),
            "add",
        )
        plain = check(lib.us_pager_plain(self._pager, region), "plain")
        await self._slices("fill", lib.us_pager_fill, region, at(0), plain, int(resident != 0))
        return region, first[0], entries[0], plain

    async def _activate(self, region: int, *_: int) -> None:
        check(lib.us_pager_activate(self._pager, region), "activate")
        await self._slices("probe", lib.us_pager_probe, region, at(0))
        self._step()

    async def _slices(self, what: str, call: Any, *args: Any) -> None:
        """Call until it is done; the loop has its turn between."""
        while True:
            if check(call(self._pager, *args), what) == lib.US_DONE:
                return
            await asyncio.sleep(0)

    async def _range(self, call: Any, region: int, cursor: Any, last: int) -> None:
        while True:
            before = cursor[0]
            answer = check(call(self._pager, region, cursor, last), "range")
            if answer == lib.US_DONE:
                return
            if answer == lib.US_AGAIN:  # the loop's turn, or the kernel has no memory just now
                await asyncio.sleep(0 if cursor[0] != before else 0.001)
            else:
                await self._wait_progress()

    async def _settle(self, region: int, first: int, last: int) -> None:
        await self._range(lib.us_pager_settle, region, at(first), last)

    async def _evict(self, region: int, first: int, last: int, *_: int) -> None:
        await self._range(lib.us_pager_evict, region, at(first), last)
        await self._settle(region, first, last)

    async def _prefetch(self, region: int, first: int, last: int, *_: int) -> None:
        await self._range(lib.us_pager_prefetch, region, at(first), last)
        await self._settle(region, first, last)

    async def _migrate(self, region: int, first: int, last: int, tier: int, *_: int) -> None:
        def begin(pager: Any, number: int, cursor: Any, end: int) -> int:
            return int(lib.us_pager_move(pager, number, cursor, end, tier))

        failure: OSError | None = None
        try:
            await self._range(begin, region, at(first), last)
        except OSError as e:  # and nothing else: cancelled, it must not touch the pager any more
            failure = e
        await self._range(lib.us_pager_moved, region, at(first), last)
        if failure is not None:
            raise failure

    async def _verify(self, region: int, first: int, last: int, *_: int) -> None:
        await self._range(lib.us_pager_verify, region, at(first), last)
        await self._settle(region, first, last)

    async def _pin(self, region: int, first: int, last: int, *_: int) -> None:
        cursor = at(first)
        try:
            await self._range(lib.us_pager_pin, region, cursor, last)
        except OSError:
            lib.us_pager_unpin(self._pager, region, first, cursor[0])
            raise

    async def _unpin(self, region: int, first: int, last: int, *_: int) -> None:
        check(lib.us_pager_unpin(self._pager, region, first, last), "unpin")
        self._step()

    async def _freeze(self, region: int, entries: int, *_: int) -> None:
        check(lib.us_pager_freeze(self._pager, region), "freeze")
        await self._settle(region, 0, entries)

    async def _restore(self, region: int, entries: int, *_: int) -> None:
        await self._freeze(region, entries)
        await self._range(lib.us_pager_restore, region, at(0), entries)

    async def _remove(self, region: int, entries: int, *_: int) -> None:
        await self._freeze(region, entries)
        # A last stale fault may be in the second server's hand.
        cursor = at(0)
        while (answer := lib.us_pager_remove(self._pager, region, cursor)) != lib.US_DONE:
            if answer == -errno.EBUSY:
                await self._settle(region, cursor[0], entries)
            else:
                check(answer, "remove")
                await asyncio.sleep(0)

    async def _limit(self, _region: int, limit: int, *_: int) -> None:
        while True:
            answer = check(lib.us_pager_limit(self._pager, limit), "limit")
            if answer == lib.US_DONE:
                return
            await self._wait_progress()

    async def _pool(self, _region: int, budget: int, *_: int) -> None:
        while (answer := check(lib.us_pager_pool(self._pager, budget), "pool")) != lib.US_DONE:
            if answer == lib.US_AGAIN:
                await asyncio.sleep(0)
            else:
                await self._wait_progress()

    async def _check(self, _region: int, *_: int) -> tuple[int]:
        ok = lib.us_pager_is_valid(self._pager)
        return (0 if ok else int(ffi.errno),)

    async def _bye(self, _region: int, *_: int) -> None:
        self._loop.call_soon(self._done.set)


def at(block: int) -> Any:
    """A cursor for the range calls, which move it."""
    return ffi.new("uint32_t *", block)


def check(result: int, what: str) -> int:
    """Return `result`, or raise the OSError that it stands for."""
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result
