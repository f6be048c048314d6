# SPDX-License-Identifier: MIT
"""Reuse distances: how many other blocks are accessed between two accesses to the same one.

An access at distance d is a hit of LRU in a memory of more than d blocks, so the distribution says how a
program's misses depend on its memory. Distances are counted by powers of two, for which no tree is needed:
of the list of blocks in the order of their last access only the places 1, 2, 4, 8, ... are marked, and
when a block goes to the front, those in front of its old place are moved on by one each.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["distances"]


def distances(accesses: Iterable[int]) -> tuple[int, list[int]]:
    """Count the accesses by their distance.

    Args:
        accesses: numbers of blocks.

    Returns:
        The number of first accesses, and a list whose item 0 counts distance 0, and whose item k those
        from 2**(k-1) to 2**k - 1. The sum of items 0 to k is LRU's hits in a memory of 2**k blocks.
    """
    number: dict[int, int] = {}
    # The list is a ring through node 0. A node at place n, from 1 on, has the level log2(n), rounded up.
    before, after, level = [0], [0], [0]
    marks: list[int] = []  # the node at place 2**k
    counts = [0]
    for block in accesses:
        node = number.get(block)
        if node is None:
            node = number[block] = len(level)
            before.append(0)
            after.append(0)
            level.append(0)
            steps = len(marks)
        else:
            steps = level[node]
            counts[steps] += 1
            if steps == 0:
                continue
            if steps < len(marks) and marks[steps] == node:
                marks[steps] = before[node]
            after[before[node]] = after[node]
            before[after[node]] = before[node]
        for k in range(steps):
            pushed = marks[k]
            level[pushed] = k + 1
            marks[k] = before[pushed]
        head = after[0]
        before[node], after[node] = 0, head
        after[0] = before[head] = node
        level[node] = 0
        if marks:
            marks[0] = node
        if len(number) == 1 << len(marks):
            marks.append(before[0])
            counts.append(0)
    return len(number), counts
