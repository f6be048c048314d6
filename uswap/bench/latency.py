# SPDX-License-Identifier: MIT
"""How long a thread stands still at a fault, by the kind of the fault, as the application sees it.

Each sample is one access timed in C from the application's side: the fault, the pager's work, the
way there and back. Blocks are touched in random order, with read-ahead off, so each touch is a fault
of its own. The region's limit has room for all of it: nothing is evicted meanwhile.

    empty      first touch of a new region, a write
    filled     a read of a block of one repeated word
    read       a read of a block in the pool
    protected  the first write to a block that came back unchanged
    write      a write to a block in the pool
    outbox     a read of a block on its way out, not compressed yet

Beside them, in each round:

    kernel     first touch of anonymous memory, a write: what a fault costs without uswap
    floor      userfaultfd itself: a C thread on the same CPU that copies a page that is ready
    codec      decompression of one block, alone

A new pager each round, so that no round is the lucky one. The first LEAD touches of each measurement
are left out: in these the loop finds out which CPU the thread runs on.
"""

from __future__ import annotations

import os
import random
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core import ffi, lib
from ..client import Pager
from ..region import Region
from ..residency import STATES
from .common import (
    DATA,
    SEED,
    Load,
    Machine,
    Progress,
    Spread,
    address_of,
    load_codec,
    make_data,
    plain_memory,
    run_codec,
    shuffle,
    touch,
)

__all__ = [
    "GOAL",
    "KINDS",
    "LEAD",
    "QUANTILES",
    "Latency",
    "Result",
    "Series",
    "measure",
    "quantile",
]

GOAL = 1.3  # pooled read to floor + decompression, medians, blocks of 4 KiB, one thread
LEAD = 128  # touches a thread
OUTBOX = 4 << 20  # bytes evicted at a time for the outbox, which holds more,
OUTBOX_BLOCKS = 512  # and this many blocks at most, since the worker is made slow:
OUTBOX_DELAY = 400  # microseconds a block at most, the half on average
OUTBOX_TURNS = 4

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}

#: The measured series, in the order of a report, and what each is.
KINDS = {
    "kernel": "kernel's own first touch",
    "floor": "userfaultfd floor",
    "codec": "decompression alone",
    "empty": "first touch",
    "filled": "filled",
    "read": "pooled, read",
    "write": "pooled, write",
    "protected": "first write to a clean block",
    "outbox": "outbox",
}

#: What the pager calls the faults of a series.
_FAULTS = {
    "empty": "empty",
    "filled": "filled",
    "read": "pooled",
    "write": "pooled",
    "protected": "protected",
    "outbox": "outbox",
}


@dataclass(frozen=True)
class Latency:
    """What to measure: `size` bytes a round in blocks of `block`, by each number of threads."""

    block: int = 4096
    size: int = 32 << 20
    rounds: int = 5
    data: str = "int64"
    threads: Sequence[int] = (1, 2)
    codec: str = "lz4"
    filter: str = "none"


@dataclass
class Series:
    """Samples of one kind with one number of threads: nanoseconds, sorted, one array a round.

    Attributes:
        seen: of the touches, the part whose fault was of this kind; None where nobody counts.
    """

    kind: str
    threads: int
    rounds: list[Sequence[int]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Samples of all rounds."""
        return sum(len(one) for one in self.rounds)

    def quantile(self, q: float) -> Spread:
        """A quantile: its median, lowest and highest over the rounds."""
        return Spread.of(quantile(one, q) for one in self.rounds)

    def merged(self) -> list[int]:
        """The samples of all rounds, sorted."""
        return sorted(value for one in self.rounds for value in one)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: quantiles over rounds, and a fine grid of quantiles of all samples together."""
        everything = self.merged()
        grid = [i / 200 for i in range(1, 200)] + [0.999, 0.9999, 1.0]
        return {
            "kind": self.kind,
            "threads": self.threads,
            "count": self.count,
            "seen": self.seen or None,
            **{name: self.quantile(q)._asdict() for name, q in QUANTILES.items()},
            "rounds": [
                {name: quantile(one, q) for name, q in QUANTILES.items()} for one in self.rounds
            ],
            "grid": [[q, quantile(everything, q)] for q in grid],
        }


@dataclass
class Result:
    """What measure() returns. Times in nanoseconds."""

    config: Latency
    machine: Machine
    ratio: float
    uffd: str
    series: dict[tuple[str, int], Series]
    others: float | None = None

    def criterion(self) -> Spread | None:
        """Pooled read to floor and decompression together: medians, a value a round."""
        try:
            read, floor, codec = (
                self.series[kind, 1].rounds for kind in ("read", "floor", "codec")
            )
        except KeyError:
            return None
        return Spread.of(
            quantile(r, 0.5) / (quantile(f, 0.5) + quantile(c, 0.5))
            for r, f, c in zip(read, floor, codec, strict=True)
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        c = self.config
        ratio = self.criterion()
        return {
            "bench": "latency",
            "unit": "ns",
            "machine": self.machine.as_dict(),
            "others": self.others,
            "uffd": self.uffd,
            "block": c.block,
            "size": c.size,
            "rounds": c.rounds,
            "data": c.data,
            "codec": c.codec,
            "filter": c.filter,
            "ratio": self.ratio,
            "criterion": {"goal": GOAL, "of_block": 4096, **(ratio._asdict() if ratio else {})},
            "series": [one.as_dict() for one in self.series.values()],
        }


def quantile(values: Sequence[int], q: float) -> int:
    """Of sorted values: the smallest that at least the part q of them does not exceed."""
    return values[min(len(values) - 1, max(0, -int(-q * len(values) // 1) - 1))]


def measure(config: Latency, progress: Progress = lambda _what, _part: None) -> Result:
    """Measure; all kinds take turns in each round."""
    load_codec(config.codec, config.filter)
    load = Load()
    progress("data", 0.0)
    source = make_data(DATA[config.data], config.size)
    ratio = run_codec(config.codec, source[: 4 << 20], config.block, filter=config.filter).ratio
    result = Result(config, Machine.here(), ratio, "", {})
    steps = config.rounds * (1 + len(config.threads))
    for number in range(config.rounds):
        at = number * (1 + len(config.threads))
        progress(f"round {number + 1}: floor and codec", at / steps)
        _round_beside(config, result, source)
        for k, threads in enumerate(config.threads):
            what = f"round {number + 1}: {threads} thread{'s' if threads > 1 else ''}"
            progress(what, (at + 1 + k) / steps)
            _round_of(config, result, source, number, threads)
    result.series = {
        (kind, threads): result.series[kind, threads]
        for threads in sorted({1, *config.threads})
        for kind in KINDS
        if (kind, threads) in result.series
    }
    result.others = load.others()
    progress("", 1.0)
    return result


# ---- rounds


def _add(result: Result, kind: str, threads: int, samples: Sequence[int]) -> Series:
    series = result.series.setdefault((kind, threads), Series(kind, threads))
    series.rounds.append(array("Q", sorted(samples)))
    return series


def _round_beside(config: Latency, result: Result, source: bytes) -> None:
    """What needs no pager: the floor and the codec."""
    count = config.size // config.block
    ns = ffi.new("uint64_t[]", count)
    error = lib.us_floor(count, config.block, ns)
    if error < 0:
        raise OSError(-error, f"the floor: {os.strerror(-error)}")
    _add(result, "floor", 1, ffi.unpack(ns, count)[LEAD:])
    run = run_codec(config.codec, source, config.block, filter=config.filter, scattered=True)
    _add(result, "codec", 1, run.decompress_ns[LEAD:])


def _round_of(config: Latency, result: Result, source: bytes, number: int, threads: int) -> None:
    """All kinds of faults, by so many threads."""
    size, block = config.size, config.block
    offsets = list(range(0, size, block))
    random.Random(SEED + number).shuffle(offsets)

    memory = plain_memory(size)
    _add(result, "kernel", threads, _touch(address_of(memory), offsets, threads, write=True))
    memory.close()

    options: dict[str, Any] = {
        "block": block,
        "codec": config.codec,
        "limit": 4 * size + (16 << 20),
        "pool": 4 * size + (16 << 20),
        "readahead": 0,
        "register": "early",
    } | shuffle(config.filter)
    with Pager(**options) as pager:
        result.uffd = pager.about()["uffd"]

        def faults(kind: str, region: Region, *, write: bool) -> None:
            before = pager.stats().faults[_FAULTS[kind]]
            samples = _touch(region.address, offsets, threads, write=write)
            seen = pager.stats().faults[_FAULTS[kind]] - before
            _add(result, kind, threads, samples).seen.append(min(1.0, seen / len(offsets)))

        region = pager.region(size)
        faults("empty", region, write=True)
        with memoryview(region) as view:
            view[:] = source
        region.evict()
        faults("read", region, write=False)
        faults("protected", region, write=True)
        region.evict()
        faults("write", region, write=True)
        del region  # given up, not brought back

        region = pager.region(size)
        with memoryview(region) as view:
            for at in range(0, size, block):
                view[at : at + block] = bytes([1 + at // block % 255]) * block
        region.evict()
        faults("filled", region, write=False)
        del region

    # One slow worker, so that blocks wait for it.
    with Pager(**options, delays=f"compress:{OUTBOX_DELAY}", workers=1) as pager:
        _round_of_outbox(config, result, source, pager, threads)


def _round_of_outbox(
    config: Latency, result: Result, source: bytes, pager: Pager, threads: int
) -> None:
    """Touches blocks while they wait for a worker."""
    size = min(OUTBOX_BLOCKS * config.block, OUTBOX, config.size)
    region = pager.region(size)
    waiting = STATES.index("outbox")
    samples: list[int] = []
    touched = seen = 0
    for number in range(OUTBOX_TURNS):
        with memoryview(region) as view:
            view[:] = source[:size]
        evicting = threading.Thread(target=region.evict)
        evicting.start()
        deadline = time.monotonic() + 1
        while True:
            states = region.residency().states
            if states.count(waiting) >= 0.9 * len(states) or time.monotonic() > deadline:
                break
            time.sleep(0.0002)
        offsets = [i * config.block for i, state in enumerate(states) if state == waiting]
        random.Random(SEED + number).shuffle(offsets)
        before = pager.stats().faults["outbox"]
        samples += _touch(region.address, offsets, threads, write=False)
        seen += pager.stats().faults["outbox"] - before
        touched += len(offsets)
        evicting.join()
    if samples:
        _add(result, "outbox", threads, samples).seen.append(min(1.0, seen / touched))
    del region


def _touch(base: int, offsets: Sequence[int], threads: int, *, write: bool) -> list[int]:
    """Touch base + each offset once, each thread its part, all at once; the nanoseconds."""
    parts = [offsets[i::threads] for i in range(threads)]
    if threads == 1:
        return touch(base, parts[0], write=write)[_lead(parts[0]) :]
    found: list[list[int]] = [[] for _ in parts]
    start = threading.Barrier(threads)

    def run(i: int) -> None:
        found[i] = touch(base, parts[i], write=write, start=start.wait)[_lead(parts[i]) :]

    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [value for one in found for value in one]


def _lead(offsets: Sequence[int]) -> int:
    """How many samples at the beginning don't count."""
    return min(LEAD, len(offsets) // 4)
