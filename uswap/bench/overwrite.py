# SPDX-License-Identifier: MIT
"""What a swap file pays for random overwriting: write amplification, and how the speed holds.

A log that is overwritten at random has its dead bytes spread over all segments, and gets room only by
copying what lives. What that costs depends on how full it is. So a region is filled until a given part
of the file is live, and then its blocks are overwritten with fresh data, at random, until the file has
been turned over several times; the first half of that is not measured. At the end each byte is compared.

*Write amplification* is bytes written to the file by bytes of objects written from the pool for the
first time. For uniform overwriting there is a figure to compare it with, see :func:`greedy`.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..client import Pager
from ..stats import Stats
from .common import SEED, Load, Machine, Progress, Spread, WrongBytes, load_codec

__all__ = ["PATTERNS", "Case", "Overwrite", "Result", "WrongBytes", "greedy", "measure"]

PATTERNS = ("uniform", "zipf")
ZIPF = 0.99  # exponent, as in YCSB
HEADER = 32  # of an object in the file
SAMPLES = 20  # of the measured half, and as many before
SOURCE = 4 << 20  # bytes that fresh data are cut out of
WARM = 0.5  # of the turns


def greedy(utilisation: float) -> float:
    """The write amplification that cleaning the poorest segment has, overwritten uniformly, in theory.

    For many objects a segment and many segments: the poorest has the part x live with
    utilisation = (x - 1) / ln x, and each byte that is freed costs 1 / (1 - x) written
    (Desnoyers, "Analytic Modeling of SSD Write Performance", SYSTOR 2012).

    Args:
        utilisation: live bytes by bytes of the file, 0 to 1.
    """
    if not 0 < utilisation < 1:
        return 1.0 if utilisation <= 0 else math.inf
    low, high = 1e-12, 1 - 1e-12
    for _ in range(100):
        x = (low + high) / 2
        if (x - 1) / math.log(x) < utilisation:
            low = x
        else:
            high = x
    return 1 / (1 - low)


@dataclass(frozen=True)
class Overwrite:
    """What to measure.

    Attributes:
        parts: of the file that is live.
        patterns: names of PATTERNS.
        swap, segment, block: bytes.
        turns: how often as many compressed bytes as the file has are overwritten.
        directory: where the file is made.
    """

    parts: Sequence[float] = (0.5, 0.7, 0.85, 0.9)
    patterns: Sequence[str] = PATTERNS
    swap: int = 256 << 20
    segment: int = 1 << 20
    block: int = 16 << 10
    turns: float = 4
    directory: str = "/var/tmp"

    @property
    def pool(self) -> int:
        """Bytes of the pool: small, so that what is overwritten reaches the file."""
        return max(self.swap // 32, 4 * self.segment)

    @property
    def limit(self) -> int:
        """Bytes that may be resident."""
        return max(self.swap // 64, 1 << 20, 16 * self.block)


@dataclass
class Case:
    """One part and pattern: counters of the measured half, and what was seen at each sample.

    Attributes:
        counts: differences of the counters of stats(), by name.
        live, used: of the file, 0 to 1, at each sample.
        rates: overwritten blocks a second between samples, of both halves.
        amplification: between samples.
    """

    part: float
    pattern: str
    blocks: int
    counts: dict[str, int] = field(default_factory=dict)
    live: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    amplification: list[float] = field(default_factory=list)

    @property
    def write_amplification(self) -> float:
        """Of the whole measured half."""
        return self.counts["written"] / max(1, self.counts["written_object_bytes"])

    @property
    def theory(self) -> float | None:
        """What greedy cleaning gives at the part that was live; None where it says nothing."""
        return greedy(Spread.of(self.live).median) if self.pattern == "uniform" else None

    def of_written(self, name: str) -> float:
        """A counter as a part of all bytes written."""
        return self.counts[name] / max(1, self.counts["written"])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "part": self.part,
            "pattern": self.pattern,
            "blocks": self.blocks,
            "write_amplification": self.write_amplification,
            "greedy": self.theory,
            "over_time": {
                "write_amplification": self.amplification,
                "live": self.live,
                "used": self.used,
                "overwrites_per_second": self.rates,
            },
            "counts": self.counts,
        }


@dataclass
class Result:
    """What measure() returns."""

    config: Overwrite
    machine: Machine
    cases: list[Case]
    others: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        c = self.config
        return {
            "bench": "overwrite",
            "machine": self.machine.as_dict(),
            "others": self.others,
            "swap": c.swap,
            "segment": c.segment,
            "block": c.block,
            "turns": c.turns,
            "limit": c.limit,
            "pool": c.pool,
            "cases": [case.as_dict() for case in self.cases],
        }


COUNTED = (
    "written",
    "written_segments",
    "written_objects",
    "written_object_bytes",
    "write_garbage",
    "rewritten",
    "padding",
    "cleaned_segments",
    "cleaned_bytes",
    "reads",
    "read_bytes",
    "over_limit",
    "refused_noroom",
)


def measure(config: Overwrite, progress: Progress = lambda _what, _part: None) -> Result:
    """Measure one case after the other."""
    load_codec("lz4")
    load = Load()
    result = Result(config, Machine.here(), [])
    cases = [(part, pattern) for pattern in config.patterns for part in config.parts]
    for number, (part, pattern) in enumerate(cases):
        what = f"{part:.0%} live, {pattern}"

        def step(done: float, what: str = what, number: int = number) -> None:
            progress(what, (number + done) / len(cases))

        result.cases.append(_case(config, part, pattern, step))
    result.others = load.others()
    progress("", 1.0)
    return result


class _Content:
    """Fresh data: of each block a quarter to three quarters do not compress, the rest is zeros."""

    def __init__(self, block: int, rng: random.Random) -> None:
        self._block = block
        self._rng = rng
        self._source = rng.randbytes(SOURCE)
        self._zeros = bytes(block)
        self._from: dict[int, list[tuple[int, int]]] = {}
        self.mean = block // 2 + HEADER + 40  # bytes in the file, with what LZ4 adds

    def fresh(self, number: int) -> bytes:
        """New content for a block."""
        random_bytes = self._rng.randrange(self._block // 4, self._block * 3 // 4)
        at = self._rng.randrange(SOURCE - self._block)
        self._from.setdefault(number, []).append((at, random_bytes))
        return self.of(number)

    def of(self, number: int, ago: int = 0) -> bytes:
        """What a block must hold; or what it held before it was overwritten so many times."""
        at, n = self._from[number][-1 - ago]
        return self._source[at : at + n] + self._zeros[n:]

    def was(self, number: int, found: bytes) -> int:
        """How many times ago a block held these bytes; 0 if it never did."""
        for ago in range(1, len(self._from[number])):
            if self.of(number, ago) == found:
                return ago
        return 0


def _chooser(pattern: str, blocks: int, rng: random.Random) -> Callable[[], int]:
    if pattern == "uniform":
        return lambda: rng.randrange(blocks)
    order = list(range(blocks))
    rng.shuffle(order)
    sums = array("d", itertools.accumulate(1 / (k + 1) ** ZIPF for k in range(blocks)))
    return lambda: order[min(blocks - 1, bisect.bisect(sums, rng.random() * sums[-1]))]


def _case(config: Overwrite, part: float, pattern: str, step: Callable[[float], None]) -> Case:
    rng = random.Random(SEED)
    content = _Content(config.block, rng)
    # What stays in the pool is between its marks, three quarters to seven eighths.
    inside = part * config.swap + config.pool * 13 // 16
    blocks = int(inside / content.mean) + config.limit // config.block
    case = Case(part, pattern, blocks)
    choose = _chooser(pattern, blocks, rng)
    total = int(config.turns * config.swap / content.mean)  # overwrites
    with Pager(
        limit=config.limit,
        pool=config.pool,
        swapfile=config.directory,
        swap=config.swap,
        segment=config.segment,
        block=config.block,
        shuffle="off",
        readahead=0,
    ) as pager:
        region = pager.region(blocks * config.block)
        block = config.block
        with memoryview(region) as view:
            for number in range(blocks):
                view[number * block : (number + 1) * block] = content.fresh(number)
                if number % 4096 == 0:
                    step(0.2 * number / blocks)
            begun: Stats | None = None
            before, last = pager.stats(), time.perf_counter()
            for sample in range(2 * SAMPLES):
                step(0.2 + 0.75 * sample / (2 * SAMPLES))
                if sample == 2 * SAMPLES * WARM:
                    begun = before
                for _ in range(total // (2 * SAMPLES)):
                    number = choose()
                    view[number * block : (number + 1) * block] = content.fresh(number)
                now, stats = time.perf_counter(), pager.stats()
                case.rates.append(total // (2 * SAMPLES) / (now - last))
                if begun is not None:
                    _sample(case, before, stats)
                before, last = stats, now
            assert begun is not None
            case.counts = {name: getattr(before, name) - getattr(begun, name) for name in COUNTED}
            for number in range(blocks):
                with view[number * block : (number + 1) * block] as found:
                    if found != content.of(number):
                        raise WrongBytes(_differs(number, bytes(found), content))
        del region  # given up: closing it would bring it all back in
    return case


def _differs(number: int, found: bytes, content: _Content) -> str:
    """What is known of a wrong block: a time of its own, or zeros, or only the first reading was wrong."""
    at = [
        k
        for k, (one, other) in enumerate(zip(found, content.of(number), strict=True))
        if one != other
    ]
    if not at:
        return f"block {number} was wrong, and is right when read again"
    older = content.was(number, found)
    what = (
        "zeros" if not any(found) else f"as overwritten {older} times ago" if older else "neither"
    )
    return (
        f"block {number} is not what was written to it: {len(at)} bytes differ, from {at[0]} to "
        f"{at[-1]}; the whole is {what}"
    )


def _sample(case: Case, before: Stats, now: Stats) -> None:
    case.live.append(now.swap_live / now.swap)
    case.used.append(now.swap_used / now.swap)
    first = now.written_object_bytes - before.written_object_bytes
    case.amplification.append((now.written - before.written) / max(1, first))
