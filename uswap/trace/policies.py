# SPDX-License-Identifier: MIT
"""Policies for replacement, each a function that counts the faults of a sequence of accesses.

A pager in user space sees no hit: what is known of a resident block is when it came in. So there are two
kinds of policies here. Those that see faults only could be built into the pager, and one of them is. The
others see every access, which the pager can't, and are bounds to compare with.

A *miss* is a fault that swaps the block in. A *soft* fault, of the policies
that have them, is one on a block that was only removed from the page table, and is still in RAM: the price
at which such a policy learns that the block is in use. It costs nearly as much as a miss that the pool
serves.

All take blocks as numbers from 0 on without gaps, and the size of the memory in blocks.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

__all__ = ["POLICIES", "Faults", "Policy"]


class Faults(NamedTuple):
    """What a policy made of a sequence of accesses."""

    misses: int
    soft: int = 0


class Policy(NamedTuple):
    """A policy: what it is, whether hits must be seen for it, and the function.

    The function takes the accesses, how many different blocks there are, and how many of them may be
    resident, at least 1.
    """

    about: str
    sees_hits: bool
    run: Callable[[Sequence[int], int, int], Faults]


# ---- bounds: every access is seen


def opt(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """Out goes the block whose next access is farthest away (Belady 1966): no policy has fewer misses."""
    never = len(accesses)
    next_of = [never] * blocks  # while going backwards: the next access of each block
    following = [0] * len(accesses)
    for i in range(len(accesses) - 1, -1, -1):
        block = accesses[i]
        following[i] = next_of[block]
        next_of[block] = i
    misses = 0
    resident: dict[int, int] = {}  # with the next access
    farthest: list[tuple[int, int]] = []  # and entries that are out of date
    for i, block in enumerate(accesses):
        if block not in resident:
            misses += 1
            if len(resident) == size:
                while True:
                    at, victim = heapq.heappop(farthest)
                    if resident.get(victim) == -at:
                        del resident[victim]
                        break
        resident[block] = following[i]
        heapq.heappush(farthest, (-following[i], block))
    return Faults(misses)


def lru(accesses: Sequence[int], _blocks: int, size: int) -> Faults:
    """Out goes the block that was accessed longest ago."""
    misses = 0
    order: OrderedDict[int, None] = OrderedDict()
    for block in accesses:
        if block in order:
            order.move_to_end(block)
            continue
        misses += 1
        if len(order) == size:
            order.popitem(last=False)
        order[block] = None
    return Faults(misses)


def clock(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """FIFO, but a block that was accessed since it came in, or was looked at, goes round once more."""
    misses = 0
    there, used = bytearray(blocks), bytearray(blocks)
    queue: deque[int] = deque()
    for block in accesses:
        if there[block]:
            used[block] = 1
            continue
        misses += 1
        if len(queue) == size:
            while used[victim := queue.popleft()]:
                used[victim] = 0
                queue.append(victim)
            there[victim] = 0
        there[block] = 1
        queue.append(block)
    return Faults(misses)


def s3fifo(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """S3-FIFO as it was published (Yang et al., SOSP 2023): hits are counted, up to 3.

    A tenth is the small queue. What leaves it with two accesses or more goes on to the main queue, the rest
    is remembered as ghosts, as many as the main queue has room for; a miss on a ghost goes to the main
    queue. What is at the head of that with hits goes round again with one less.
    """
    small_size = max(1, size // 10)
    ghosts_max = size - small_size
    misses = 0
    there, hits = bytearray(blocks), bytearray(blocks)
    small: deque[int] = deque()
    main: deque[int] = deque()
    ghosts: OrderedDict[int, None] = OrderedDict()
    for block in accesses:
        if there[block]:
            if hits[block] < 3:
                hits[block] += 1
            continue
        misses += 1
        while len(small) + len(main) == size:
            if len(small) >= small_size or not main:
                victim = small.popleft()
                if hits[victim] > 1:
                    hits[victim] = 0
                    main.append(victim)
                    continue
                ghosts[victim] = None
                if len(ghosts) > ghosts_max:
                    ghosts.popitem(last=False)
            else:
                victim = main.popleft()
                if hits[victim]:
                    hits[victim] -= 1
                    main.append(victim)
                    continue
            there[victim] = 0
        there[block] = 1
        hits[block] = 0
        if block in ghosts:
            del ghosts[block]
            main.append(block)
        else:
            small.append(block)
    return Faults(misses)


# ---- only faults are seen


def fifo(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """Out goes the block that came in first."""
    misses = 0
    there = bytearray(blocks)
    queue: deque[int] = deque()
    for block in accesses:
        if there[block]:
            continue
        misses += 1
        if len(queue) == size:
            there[queue.popleft()] = 0
        there[block] = 1
        queue.append(block)
    return Faults(misses)


def second_chance(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """FIFO, but the last tenth of the way out of the page table: what is touched there comes back.

    The segmented FIFO of VMS (Turner and Levy, 1981).
    """
    misses = soft = 0
    waiting_size = max(1, size // 10) if size > 1 else 0
    there = bytearray(blocks)
    queue: deque[int] = deque()
    waiting: OrderedDict[int, None] = OrderedDict()
    for block in accesses:
        if there[block]:
            continue
        if block in waiting:
            soft += 1
            del waiting[block]
        else:
            misses += 1
        if len(queue) == size - waiting_size:
            victim = queue.popleft()
            there[victim] = 0
            waiting[victim] = None
            if len(waiting) > waiting_size:
                waiting.popitem(last=False)
        there[block] = 1
        queue.append(block)
    return Faults(misses, soft)


def ghosts(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """S3-FIFO without hits, the pager's policy before "uswap".

    A small queue of a tenth; what faults again within 0.9 memories of evictions goes to the main queue.
    """
    return _queues(accesses, blocks, size, small=size // 10, lately=size - size // 10, rounds=0)


def sampled(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """S3-FIFO whose hits are sampled: a twentieth is out of the page table on its way out.

    A soft fault there counts as the hit: the block goes to the main queue's end.
    """
    misses = soft = 0
    waiting_size = max(1, size // 20) if size > 1 else 0
    small_size, lately = size // 20, size // 2
    there = bytearray(blocks)
    left = [0] * blocks  # when it left; 0 never
    clock_now = 0
    small: deque[int] = deque()
    main: deque[int] = deque()
    waiting: OrderedDict[int, None] = OrderedDict()
    for block in accesses:
        if there[block]:
            continue
        if block in waiting:
            soft += 1
            del waiting[block]
            again = True
        else:
            misses += 1
            again = left[block] > 0 and clock_now - left[block] <= lately
        if len(small) + len(main) == size - waiting_size:
            from_small = len(small) > (small_size if main else 0)
            victim = (small if from_small else main).popleft()
            there[victim] = 0
            waiting[victim] = None
            if len(waiting) > waiting_size:
                gone, _ = waiting.popitem(last=False)
                clock_now += 1
                left[gone] = clock_now
        there[block] = 1
        (main if again else small).append(block)
    return Faults(misses, soft)


ROUNDS = 7  # US_ROUNDS of csrc/state.h
TURNS = 8  # US_TURNS


def uswap(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """The pager's policy (``csrc/policy.c``), without read-ahead and with exact limits.

    A small queue of a twentieth. What faults again lately goes to the main queue, and each time earns a
    round more, up to ROUNDS, that it may go round there before it leaves; what faults again later loses one.
    Lately is within half a memory of evictions, and an eighth more for each round that it has earned. At most
    TURNS blocks go round for one that leaves.
    """
    return _queues(accesses, blocks, size, small=size // 20, lately=size // 2, rounds=ROUNDS)


def pager(accesses: Sequence[int], blocks: int, size: int) -> Faults:
    """The same as the pager does it: between its marks, in batches."""
    slack = size // 16
    return _queues(
        accesses,
        blocks,
        size - slack,
        small=size // 20,
        lately=size // 2,
        rounds=ROUNDS,
        batch=slack,
    )


def _queues(
    accesses: Sequence[int],
    blocks: int,
    size: int,
    *,
    small: int,
    lately: int,
    rounds: int,
    batch: int = 1,
) -> Faults:
    misses = 0
    horizon = [lately + lately * earned // 4 for earned in range(rounds + 1)]
    there = bytearray(blocks)
    left = [0] * blocks  # when it left, counted in evictions; 0 never
    earned, spare = bytearray(blocks), bytearray(blocks)  # rounds; those not used up
    clock_now = 0
    first: deque[int] = deque()
    main: deque[int] = deque()
    for block in accesses:
        if there[block]:
            continue
        misses += 1
        if len(first) + len(main) >= size:
            for _ in range(max(1, batch)):
                if len(first) > (small if main else 0):
                    victim = first.popleft()
                else:
                    victim = main.popleft()
                    turns = TURNS
                    while spare[victim] and turns:
                        spare[victim] -= 1
                        main.append(victim)
                        victim = main.popleft()
                        turns -= 1
                there[victim] = 0
                clock_now += 1
                left[victim] = clock_now
        there[block] = 1
        if left[block] and clock_now - left[block] <= horizon[earned[block]]:
            if earned[block] < rounds:
                earned[block] += 1
            spare[block] = earned[block]
            main.append(block)
        else:
            if earned[block]:
                earned[block] -= 1
            spare[block] = 0
            first.append(block)
    return Faults(misses)


POLICIES: dict[str, Policy] = {
    "opt": Policy("Belady's: the future is known", True, opt),
    "lru": Policy("least recently used", True, lru),
    "clock": Policy("FIFO; what was accessed goes round again", True, clock),
    "s3fifo": Policy("S3-FIFO as published, which counts hits", True, s3fifo),
    "fifo": Policy("first in, first out", False, fifo),
    "second-chance": Policy("FIFO; the last tenth of the way is unmapped", False, second_chance),
    "ghosts": Policy("S3-FIFO with ghosts alone, the pager's before this", False, ghosts),
    "sampled": Policy("S3-FIFO; a twentieth is unmapped to see what is used", False, sampled),
    "uswap": Policy("S3-FIFO with ghosts and earned rounds: the pager's", False, uswap),
    "pager": Policy("the same between the pager's marks", False, pager),
}
