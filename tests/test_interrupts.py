# SPDX-License-Identifier: MIT
"""An exception at any bytecode of any call leaves client and pager of one mind, and no byte in other hands."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import psutil
import pytest

import uswap

from child import run_child
from workload import KIB, MIB

N = 256 * KIB
DATA = random.Random(3).randbytes(N)


class Tick(BaseException):
    """What the handler raises."""


class Bench:
    """A pager, the calls that are interrupted, and what must hold after each."""

    def __init__(self) -> None:
        self.pager = uswap.Pager(limit="1MiB", pool="16MiB", readahead=0, register="early")
        self.keep = self.pager.region(N)
        memoryview(self.keep)[:] = DATA
        self.pressure = memoryview(self.pager.region(4 * MIB))
        self.known = {r._id for r in self.pager.regions}
        gc.collect()
        gc.freeze()  # what is there stays, and is not looked at again and again

    # ---- each ends with nothing left, if nobody interrupts it

    def region(self) -> None:
        """Make, fill and drop."""
        region = self.pager.region(N)
        memoryview(region)[:4] = b"abcd"
        del region

    def close_region(self) -> None:
        """Make, evict and close."""
        region = self.pager.region(N)
        region.evict(0, 64 * KIB)
        region.close()

    def with_region(self) -> None:
        """Make and release by a with block."""
        with self.pager.region(N) as region:
            region.prefetch()

    def wrap(self) -> None:
        """Wrap a buffer and release it."""
        buffer = bytearray(DATA)
        with self.pager.wrap(buffer) as region:
            region.evict()
        assert buffer == DATA

    def pinned(self) -> None:
        """Hold a part."""
        with self.keep.pinned(0, 64 * KIB) as view:
            assert view[5] == DATA[5]

    def moves(self) -> None:
        """Evict, prefetch, look."""
        self.keep.evict()
        self.keep.prefetch()
        self.keep.check()
        self.keep.residency()
        self.pager.stats()

    # ---- what must hold

    def settle(self, where: str) -> None:
        """Client and pager know the same; memory that is given back is nobody's but its new owner's."""
        gc.collect()
        for region in self.pager.regions:  # a wrapped one stays the pager's until it is released
            if region._id not in self.known:
                region.release()
                del region
                gc.collect()
                break
        region = None
        stats = self.pager.stats()
        assert {r._id for r in self.pager.regions} == self.known, where
        assert stats.regions == len(self.known), (where, stats.regions)
        assert stats.pinned == 0, (where, stats.pinned)

    def addresses(self, where: str) -> None:
        """New memory, likely where regions were, keeps its bytes while the pager evicts."""
        mine = [mmap.mmap(-1, N, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(4)]
        for one in mine:
            one[:] = DATA
        for at in range(0, len(self.pressure), mmap.PAGESIZE):
            self.pressure[at] = 1
        for one in mine:
            assert one[:] == DATA, where
            one.close()
        assert memoryview(self.keep) == DATA, where
        self.pager.check()


CALLS = ("region", "close_region", "with_region", "wrap", "pinned", "moves")


def _swallow(_unraisable: Any) -> None:
    """What a finaliser can't raise it says; here that is expected."""


class Interruption:
    """Raises before one bytecode of uswap's code, or contextlib's, counted from 1."""

    PACKAGE = os.path.dirname(uswap.__file__)

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def _trace(self, frame: FrameType, event: str, _arg: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(self.PACKAGE) and "contextlib" not in name:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                raise Tick
        return self._trace

    def strikes(self, function: Callable[[], None]) -> bool:
        """Call a function; whether the exception came out of it. What a finaliser swallows does not.

        Raised at the end of an `except`, CPython (3.11 to 3.13) leaves what was handled in the state of the thread, and
        with it all frames' objects: a pager too. A generator has such a state of its own, which ends with it.
        """

        def call() -> Iterator[None]:
            yield function()

        try:
            sys.settrace(self._trace)
            next(call())
        except Tick:
            return True
        finally:
            sys.settrace(None)
        return False


def every_bytecode(call: str) -> int:
    """What the children of test_every_bytecode run: raises before the k-th bytecode, for every k."""
    bench = Bench()
    function: Callable[[], None] = getattr(bench, call)
    function()
    bench.settle("first")
    sys.unraisablehook = _swallow
    raised = at = 0
    while True:
        at += 1
        one = Interruption(at)
        raised += one.strikes(function)
        where = f"{call}, bytecode {at}"
        bench.settle(where)
        if at % 16 == 0:
            bench.addresses(where)
        if one.count < at:
            break
    bench.addresses("end")
    print(raised, flush=True)
    bench.pressure.release()
    bench.pager.close()
    return raised


@pytest.mark.parametrize("call", CALLS)
def test_every_bytecode(call: str) -> None:
    """An exception before each bytecode of a call in turn."""
    result = run_child(every_bytecode, args=[call], timeout=240)
    assert result.json > 50, result


def held() -> tuple[int, int, int, int]:
    """What this process has: descriptors, mappings of a pager's, threads, children that run."""
    with open("/proc/self/maps", encoding="utf-8") as file:
        maps = sum("memfd:uswap" in line for line in file)
    children = [one for one in psutil.Process().children() if one.status() != "zombie"]
    return len(os.listdir("/proc/self/fd")), maps, len(os.listdir("/proc/self/task")), len(children)


def lives(step: int, first: int) -> list[int]:
    """What the child of test_life runs: a pager begins and ends, with an exception at every step-th bytecode of that."""

    def life() -> None:
        with uswap.Pager(limit="1MiB", pool="1MiB", register="early") as pager:
            region = pager.region(64 * KIB)
            memoryview(region)[:4] = b"abcd"
            region.evict()
            assert memoryview(region)[:4] == b"abcd"
            del region

    life()
    sys.unraisablehook = _swallow
    warnings.simplefilter("ignore", ResourceWarning)
    gc.collect()
    before, lost, raised = held(), 0, 0
    for at in range(first, 1 << 30, step):
        one = Interruption(at)
        raised += one.strikes(life)
        if one.count < at:
            return [raised, lost]
        gc.collect()
        end = time.monotonic() + 10
        while held()[1:] != before[1:]:
            assert time.monotonic() < end, (at, before, held())
            time.sleep(0.001)
        lost = held()[0] - before[0]
    raise AssertionError


def test_life() -> None:
    """A pager that an exception cuts short, at its start or its end, leaves no process, no thread and no memory."""
    first = random.randrange(1, 251)
    raised, descriptors = run_child(lives, args=[251, first], timeout=240).json
    assert raised > 20
    # Between the system call that opens one and the object that closes it lie a few bytecodes.
    assert descriptors <= 1 + raised // 10, (first, raised, descriptors)


def at_random(seconds: float, seed: int) -> int:
    """What the child of test_at_random runs: a timer's handler raises, beside threads that call too."""
    bench, rng = Bench(), random.Random(seed)
    sys.unraisablehook = _swallow
    stop, last, calls = threading.Event(), [time.monotonic()], [0]

    def other() -> None:
        while not stop.is_set():
            bench.pager.check()
            calls[0] += 1
            last[0] = time.monotonic()

    thread = threading.Thread(target=other)
    thread.start()
    armed = False

    def ring(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Tick

    signal.signal(signal.SIGALRM, ring)
    raised, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        function = getattr(bench, rng.choice(CALLS))
        try:
            armed = True
            signal.setitimer(
                signal.ITIMER_REAL, rng.choice((2e-4, 1e-3, 4e-3)) * (rng.random() + 0.01)
            )
            function()
            armed = False
        except Tick:
            raised += 1
        finally:
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        bench.settle(f"seed {seed}, round {raised}")
        if raised % 64 == 0:
            bench.addresses(f"seed {seed}, round {raised}")
        assert time.monotonic() < last[0] + 5, "the other thread's call waits"
    stop.set()
    thread.join()
    assert calls[0] > 10
    bench.addresses("end")
    bench.pressure.release()
    bench.pager.close()
    return raised


def test_at_random() -> None:
    """An alarm at random moments, while another thread asks the pager; INTERRUPT_SECONDS makes it longer."""
    seconds = float(os.environ.get("USWAP_INTERRUPT_SECONDS", "10"))
    seed = random.randrange(1 << 30)
    print("seed", seed)
    result = run_child(at_random, args=[seconds, seed], timeout=seconds + 60)
    print("exceptions", result.json)
    assert result.json > 100, result


def test_nothing_is_left_handled() -> None:
    """An exception at any bytecode of an `except` leaves no exception, nor what its frames hold, in the thread."""

    @contextlib.contextmanager
    def nothing() -> Iterator[None]:
        yield

    def function() -> None:
        with nothing():
            pass

    for at in range(1, 1 << 10):
        one = Interruption(at)
        one.strikes(function)
        assert sys.exc_info() == (None, None, None), at
        if one.count < at:
            return
    raise AssertionError
