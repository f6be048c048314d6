# SPDX-License-Identifier: MIT
"""The simulator of policies: against faults counted by hand, and against each other."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uswap.trace import patterns
from uswap.trace.policies import POLICIES, ROUNDS, TURNS, Faults
from uswap.trace.reuse import distances
from uswap.trace.simulate import numbered, simulate

BOOK = "70120304230321201701"  # of every book on operating systems
BELADY = "123412512345"

SEQUENCES = st.lists(st.integers(0, 11), max_size=120)


def run(policy: str, accesses: Sequence[int] | str, size: int) -> Faults:
    """The faults of a policy, for accesses to blocks of any numbers or letters."""
    sequence, blocks = numbered(map(ord, accesses) if isinstance(accesses, str) else accesses)
    return POLICIES[policy].run(sequence, blocks, size)


@pytest.mark.parametrize(
    ("policy", "accesses", "size", "misses", "soft"),
    [
        ("opt", BOOK, 3, 9, 0),
        ("lru", BOOK, 3, 12, 0),
        ("fifo", BOOK, 3, 15, 0),
        # More memory, and more faults: FIFO's anomaly. The others have none.
        ("fifo", BELADY, 3, 9, 0),
        ("fifo", BELADY, 4, 10, 0),
        ("lru", BELADY, 3, 10, 0),
        ("lru", BELADY, 4, 8, 0),
        ("opt", BELADY, 3, 7, 0),
        ("opt", BELADY, 4, 6, 0),
        # c: a was accessed, and goes round, so that b leaves.
        ("clock", "abaca", 2, 3, 0),
        ("fifo", "abaca", 2, 4, 0),
        # b and c pass through the small queue; a, accessed three times, goes on to the main one.
        ("s3fifo", "aaabcda", 2, 4, 0),
        ("fifo", "aaabcda", 2, 5, 0),
        # Accessed twice only, it does not.
        ("s3fifo", "aabcda", 2, 5, 0),
        # a is a ghost when it comes back: to the main queue, where g does not push it out.
        ("s3fifo", "abcdaefga", 3, 8, 0),
        ("fifo", "abcdaefga", 3, 9, 0),
        # a comes back after one eviction, and stays in the main queue while d and e pass.
        ("ghosts", "abcadaea", 2, 6, 0),
        ("uswap", "abcadaea", 2, 6, 0),
        ("fifo", "abcadaea", 2, 7, 0),
        # One is in, one waits: b pushes a out to there, a comes back from there and pushes b, ...
        ("second-chance", "abaca", 2, 3, 2),
        ("sampled", "abaca", 2, 3, 2),
        # Twice a pause: c has pushed it on.
        ("second-chance", "abca", 2, 4, 0),
    ],
)
def test_by_hand(policy: str, accesses: str, size: int, misses: int, soft: int) -> None:
    """Short sequences whose faults can be counted on paper."""
    assert run(policy, accesses, size) == (misses, soft)


@settings(deadline=None, max_examples=150)
@given(accesses=SEQUENCES, size=st.integers(1, 14))
def test_bounds(accesses: list[int], size: int) -> None:
    """No policy has fewer misses than blocks or than Belady's; with room for all each block misses once."""
    blocks = len({*accesses})
    best = run("opt", accesses, size).misses
    for policy in POLICIES:
        misses, soft = run(policy, accesses, size)
        assert blocks <= best <= misses
        assert misses + soft <= len(accesses)
        if policy not in ("second-chance", "sampled"):
            assert soft == 0
        if size >= max(1, blocks):
            assert (misses, soft) == (blocks, 0) or soft > 0 or policy == "pager"


def least(accesses: Sequence[int], size: int) -> int:
    """The fewest misses there can be, by trying everything."""
    states = {frozenset[int](): 0}
    for block in accesses:
        after: dict[frozenset[int], int] = {}
        for inside, misses in states.items():
            if block in inside:
                nexts = [(inside, misses)]
            elif len(inside) < size:
                nexts = [(inside | {block}, misses + 1)]
            else:
                nexts = [(inside - {out} | {block}, misses + 1) for out in inside]
            for state, count in nexts:
                after[state] = min(count, after.get(state, count))
        states = after
    return min(states.values())


@settings(deadline=None, max_examples=60)
@given(accesses=st.lists(st.integers(0, 5), max_size=30), size=st.integers(1, 5))
def test_opt_is_the_least(accesses: list[int], size: int) -> None:
    """Belady's has as few misses as there can be."""
    assert run("opt", accesses, size).misses == least(accesses, size)


def plain_uswap(accesses: Sequence[int], size: int) -> int:
    """The rules of csrc/policy.c once more, as they are said there, with lists for queues."""
    small: list[int] = []
    main: list[int] = []
    earned: dict[int, int] = {}
    rounds: dict[int, int] = {}
    left: dict[int, int] = {}
    misses = evictions = 0
    for block in accesses:
        if block in small or block in main:
            continue
        misses += 1
        if len(small) + len(main) == size:
            if len(small) > (size // 20 if main else 0):
                victim = small.pop(0)
            else:
                for _ in range(TURNS):
                    if rounds[main[0]] > 0:
                        rounds[main[0]] -= 1
                        main.append(main.pop(0))
                victim = main.pop(0)
            evictions += 1
            left[victim] = evictions
        had = earned.get(block, 0)
        half = size // 2
        if block in left and evictions - left[block] <= half + half * had // 4:
            earned[block] = rounds[block] = min(had + 1, ROUNDS)
            main.append(block)
        else:
            earned[block] = max(had - 1, 0)
            small.append(block)
    return misses


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**32), size=st.integers(2, 60))
def test_uswap_follows_its_rules(seed: int, size: int) -> None:
    """The pager's policy is what its rules say, for accesses with hot blocks."""
    rng = random.Random(seed)
    accesses = [min(rng.randrange(80), rng.randrange(80), rng.randrange(80)) for _ in range(600)]
    assert run("uswap", accesses, size).misses == plain_uswap(accesses, size)


def test_what_it_is_for() -> None:
    """A hot set and a scan: what sees faults only comes near LRU at the one, and is not spoilt by the other."""
    zipf = patterns.make("zipf", blocks=1024, accesses=60_000)
    assert run("uswap", zipf, 256).misses < run("ghosts", zipf, 256).misses * 0.95
    assert run("uswap", zipf, 256).misses < run("lru", zipf, 256).misses * 0.95
    mix = patterns.make("mix", blocks=1024, accesses=60_000)
    assert run("uswap", mix, 256).misses < run("lru", mix, 256).misses * 0.9
    assert run("uswap", mix, 256).misses < run("fifo", mix, 256).misses * 0.85


# ---- reuse distances


def plain_distances(accesses: Sequence[int]) -> tuple[int, dict[int, int]]:
    """The same with a list."""
    order: list[int] = []
    counts: dict[int, int] = {}
    first = 0
    for block in accesses:
        if block in order:
            at = order.index(block)
            counts[at.bit_length()] = counts.get(at.bit_length(), 0) + 1
            order.remove(block)
        else:
            first += 1
        order.insert(0, block)
    return first, counts


@settings(deadline=None, max_examples=200)
@given(accesses=st.lists(st.integers(0, 40), max_size=200))
def test_distances(accesses: list[int]) -> None:
    """Counts by powers of two agree with a list; their sums are LRU's hits."""
    first, counts = distances(accesses)
    assert (first, {k: n for k, n in enumerate(counts) if n}) == plain_distances(accesses)
    for k in range(len(counts)):
        assert len(accesses) - sum(counts[: k + 1]) == run("lru", accesses, 1 << k).misses


# ---- patterns, and the whole


@pytest.mark.parametrize("pattern", list(patterns.PATTERNS))
def test_patterns(pattern: str) -> None:
    """As many as asked for, within the blocks, the same for a seed, and others for another."""
    made = patterns.make(pattern, blocks=100, accesses=5003)
    assert len(made) == 5003
    assert {*made} == {*range(100)}
    assert made == patterns.make(pattern, blocks=100, accesses=5003)
    assert (made == patterns.make(pattern, blocks=100, accesses=5003, seed=2)) == (
        pattern == "loop"
    )
    assert len(patterns.make(pattern, blocks=2, accesses=9)) == 9


def test_zipf_is_zipf() -> None:
    """The hottest block of a thousand has 1 / H(1000) of the accesses, the second half as many."""
    made = patterns.make("zipf", blocks=1000, accesses=200_000)
    counts = sorted((made.count(block) for block in range(1000)), reverse=True)
    whole = sum((rank + 1) ** -0.99 for rank in range(1000))
    assert counts[0] / len(made) == pytest.approx(1 / whole, rel=0.05)
    assert counts[1] / counts[0] == pytest.approx(2**-0.99, rel=0.08)


def test_shift_shifts() -> None:
    """In each eighth others are hot."""
    made = patterns.make("shift", blocks=1000, accesses=80_000)
    hottest = {max(set(part), key=part.count) for part in (made[:10_000], made[10_000:20_000])}
    assert len(hottest) == 2


def test_simulate() -> None:
    """Every policy in every size, in order, with progress told."""
    told: list[float] = []
    result = simulate(
        "some",
        [5, 9, 5, 7, 5],
        lambda blocks: [blocks - 1, blocks],
        ["fifo", "opt"],
        lambda _what, part: told.append(part),
    )
    assert [(row.policy, row.size, row.faults.misses) for row in result.rows] == [
        ("fifo", 2, 4),
        ("opt", 2, 3),
        ("fifo", 3, 3),
        ("opt", 3, 3),
    ]
    assert told == [0, 0.25, 0.5, 0.75]
    found = result.as_dict()
    assert (found["accesses"], found["blocks"]) == (5, 3)
    assert found["rows"][0] == {
        "policy": "fifo",
        "sees_hits": False,
        "size": 2,
        "misses": 4,
        "soft": 0,
        "part": 0.8,
    }
