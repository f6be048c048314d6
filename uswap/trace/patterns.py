# SPDX-License-Identifier: MIT
"""Accesses without a program, for the simulator: sequences of numbers of blocks, the same for each seed."""

from __future__ import annotations

import itertools
import random
from array import array
from collections.abc import Callable, Iterator

__all__ = ["PATTERNS", "make", "zipf"]

ZIPF = 0.99  # exponent, as in YCSB
PHASES = 8


def _uniform(blocks: int, rng: random.Random) -> Iterator[int]:
    while True:
        yield from rng.choices(range(blocks), k=4096)


def zipf(blocks: int, rng: random.Random) -> Iterator[int]:
    """Numbers below `blocks`, the one of rank k as often as 1 / k to the ZIPF; ranks are given at random."""
    order = list(range(blocks))
    rng.shuffle(order)
    weights = list(itertools.accumulate((rank + 1) ** -ZIPF for rank in range(blocks)))
    while True:
        yield from rng.choices(order, cum_weights=weights, k=4096)


def _loop(blocks: int, _rng: random.Random) -> Iterator[int]:
    return itertools.cycle(range(blocks))


def _mix(blocks: int, rng: random.Random) -> Iterator[int]:
    hot = blocks // 2
    accesses = zipf(hot, rng)
    scan = itertools.cycle(range(hot, blocks))
    while True:
        yield from itertools.islice(accesses, 3 * hot // 4)
        yield from itertools.islice(scan, max(1, hot // 4))


#: By name: what it is, and what makes it; "shift" is made by make().
PATTERNS: dict[str, tuple[str, Callable[[int, random.Random], Iterator[int]]]] = {
    "zipf": ("random, Zipf 0.99: few blocks are hot, and stay so", zipf),
    "shift": ("the same, but other blocks are hot after each eighth", zipf),
    "mix": (
        "three accesses of four Zipf 0.99 in one half, in bursts; the other half is scanned",
        _mix,
    ),
    "uniform": ("random, all blocks alike", _uniform),
    "loop": ("one block after the other, again and again", _loop),
}


def make(pattern: str, *, blocks: int, accesses: int, seed: int = 1) -> array[int]:
    """Return so many accesses to blocks 0 to `blocks` - 1.

    Args:
        pattern: a name in PATTERNS.
        blocks: at least 2.
        seed: another one gives other random numbers.
    """
    source = PATTERNS[pattern][1]
    rng = random.Random(seed)
    if pattern != "shift":
        return array("Q", itertools.islice(source(blocks, rng), accesses))
    out: array[int] = array("Q")
    for phase in range(PHASES):
        length = accesses * (phase + 1) // PHASES - accesses * phase // PHASES
        out.extend(itertools.islice(source(blocks, rng), length))
    return out
