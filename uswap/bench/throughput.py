# SPDX-License-Identifier: MIT
"""How fast a region is read from end to end while it comes out of the pool.

Two cases. *Evicted*: the limit has room for all of it, and all of it was evicted before. *Over
limit*: the limit is a part of the region, so that bringing in goes along with evicting; what leaves
is clean then. Read-modify-write is the same with what leaves changed. Beside them, in the same run:
plain memory, and the codec alone on one thread.

With a directory the pool is a small one, and all of it was in a swap file before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .._core import lib
from ..client import Pager
from ..sizes import format_size
from .common import (
    DATA,
    Load,
    Machine,
    Progress,
    Spread,
    WrongBytes,
    address_of,
    halved,
    load_codec,
    make_data,
    plain_memory,
    run_codec,
    shuffle,
)

__all__ = ["CASES", "GOAL", "Result", "Row", "Throughput", "WrongBytes", "measure"]

GOAL = 800e6  # bytes a second: a pooled region that LZ4 halves, read in order
CASES = ("evicted", "over limit", "rmw evicted", "rmw over limit")
POOL = 16 << 20  # bytes, where most is in a file
STEP = 8 << 20  # bytes that are read before a signal is looked at
MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Throughput:
    """What to measure.

    Attributes:
        size: bytes of the region.
        part: the limit of the over-limit cases, as a part of size.
        data: "halved" (int64 that the codec halves at each block size) or a name of DATA.
        write: measure read-modify-write too.
        directory: of the swap file; None: there is none, and a pool that holds everything.
    """

    blocks: Sequence[int]
    size: int = 256 << 20
    part: float = 0.25
    rounds: int = 5
    data: str = "halved"
    codec: str = "lz4"
    filter: str = "none"
    write: bool = False
    readahead: int | None = None
    workers: int | None = None
    directory: str | None = None


@dataclass
class Row:
    """One block size. Bytes a second, one value a round, by case; "codec" is decompression alone."""

    block: int
    data: str
    ratio: float
    rates: dict[str, list[float]] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    def spread(self, case: str) -> Spread | None:
        """The figure of a case, None when it was not measured."""
        return Spread.of(self.rates[case]) if self.rates.get(case) else None


@dataclass
class Result:
    """What measure() returns; "memory" in bytes a second."""

    config: Throughput
    machine: Machine
    memory: list[float]
    memory_write: list[float]
    rows: list[Row]
    others: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        c = self.config
        return {
            "bench": "throughput",
            "unit": "bytes/s",
            "goal": GOAL,
            "machine": self.machine.as_dict(),
            "others": self.others,
            "size": c.size,
            "limit_part": c.part,
            "rounds": c.rounds,
            "codec": c.codec,
            "filter": c.filter,
            "directory": c.directory,
            "memory": self.memory,
            "memory_rmw": self.memory_write,
            "blocks": [
                {
                    "block": row.block,
                    "data": row.data,
                    "ratio": row.ratio,
                    "rates": row.rates,
                    "stats": row.stats,
                }
                for row in self.rows
            ],
        }


def measure(config: Throughput, progress: Progress = lambda _what, _part: None) -> Result:
    """Measure; rounds of all block sizes alternate."""
    load_codec(config.codec, config.filter)
    load = Load()
    result = Result(config, Machine.here(), [], [], [])
    data = []
    for i, block in enumerate(config.blocks):
        progress("data", i / len(config.blocks) / 20)
        if config.data == "halved":
            below, make = halved(config.codec, block)
            name = f"int64 below {below:,}"
        else:
            make, name = DATA[config.data], config.data
        data.append(make_data(make, config.size))
        run = run_codec(config.codec, data[-1][: 4 << 20], block, filter=config.filter)
        result.rows.append(Row(block, name, run.ratio))
    steps = config.rounds * (1 + len(config.blocks))
    for step in range(steps):
        number, turn = divmod(step, 1 + len(config.blocks))
        what = f"blocks of {format_size(config.blocks[turn - 1])}" if turn else "plain memory"
        progress(f"round {number + 1}: {what}", 0.05 + 0.95 * step / steps)
        if turn:
            _round_of(config, result.rows[turn - 1], data[turn - 1])
        else:
            _round_of_memory(config, result)
    result.others = load.others()
    progress("", 1.0)
    return result


def _round_of_memory(config: Throughput, result: Result) -> None:
    memory = plain_memory(config.size)
    for at in range(0, config.size, STEP):
        memory[at : at + STEP] = bytes(min(STEP, config.size - at))
    result.memory.append(_sweep(address_of(memory), config.size)[0])
    if config.write:
        result.memory_write.append(_sweep(address_of(memory), config.size, write=True)[0])
    memory.close()


def _round_of(config: Throughput, row: Row, source: bytes) -> None:
    alone = run_codec(config.codec, source[: 32 << 20], row.block, filter=config.filter)
    row.rates.setdefault("codec", []).append(alone.raw / sum(alone.decompress_ns) * 1e9)
    size = config.size
    whole = size + max(64 << 20, size // 4)  # a limit that nothing comes near
    _round_within(config, row, source, "evicted", whole)
    _round_within(config, row, source, "over limit", max(2 << 20, int(size * config.part)))


def _round_within(config: Throughput, row: Row, source: bytes, case: str, limit: int) -> None:
    size = config.size
    options: dict[str, Any] = {
        "limit": limit,
        "pool": 2 * size + (64 << 20),
        "codec": config.codec,
    } | shuffle(config.filter)
    if config.readahead is not None:
        options["readahead"] = config.readahead
    if config.workers is not None:
        options["workers"] = config.workers
    if config.directory is not None:
        options |= {"pool": POOL, "swapfile": config.directory, "swap": 2 * size + 8 * POOL}
    with Pager(**options) as pager:
        region = pager.region(size, block=row.block)
        with memoryview(region) as view:
            for at in range(0, size, STEP):
                view[at : at + STEP] = source[at : at + STEP]
        region.evict()
        if config.directory is not None:
            region.migrate("file")
        expected = _sum_of(source)
        if case == "over limit":
            # Once unmeasured: afterwards as much is resident, and as clean, as in any later pass.
            _check(_sweep(region.address, size)[1], expected)
        rate, total = _sweep(region.address, size)
        _check(total, expected)
        row.rates.setdefault(case, []).append(rate)
        if config.write:
            if case == "evicted":
                region.evict()
                if config.directory is not None:
                    region.migrate("file")
            else:
                _sweep(region.address, size, write=True)  # what leaves is changed from here on
            rate, _ = _sweep(region.address, size, write=True)
            row.rates.setdefault(f"rmw {case}", []).append(rate)
        stats = pager.stats()
        row.stats[case] = {
            "faults": dict(stats.faults),
            "readahead_blocks": stats.readahead_blocks,
            "reads": stats.reads,
            "throttled": stats.throttled,
            "peak_resident": stats.peak_resident,
            "density": stats.density,
            "compressed_blocks": stats.compressed_blocks,
            "shuffled_blocks": stats.shuffled_blocks,
        }
        del region  # given up: closing it would bring it all back in


def _check(total: int, expected: int) -> None:
    if total != expected:
        raise WrongBytes(f"the sum of the words read is {total:#x}, but was {expected:#x}")


def _sum_of(source: bytes) -> int:
    return int(lib.us_sweep(address_of(source), len(source), 0))


def _sweep(address: int, size: int, *, write: bool = False) -> tuple[float, int]:
    """Bytes a second, and the sum of the words."""
    total = 0
    start = time.perf_counter()
    for at in range(0, size, STEP):  # in steps, so that Ctrl-C is heard
        total += lib.us_sweep(address + at, min(STEP, size - at), int(write))
    return size / (time.perf_counter() - start), total & MASK
