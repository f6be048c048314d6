# SPDX-License-Identifier: MIT
"""Replays accesses through policies, for several sizes of memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .policies import POLICIES, Faults

__all__ = ["Result", "Row", "numbered", "simulate"]

Progress = Callable[[str, float], None]


def numbered(accesses: Iterable[int]) -> tuple[array[int], int]:
    """Return the accesses with their blocks numbered from 0 on without gaps, and how many blocks."""
    number: dict[int, int] = {}
    out = array("Q", (number.setdefault(block, len(number)) for block in accesses))
    return out, len(number)


@dataclass(frozen=True)
class Row:
    """One policy in one size of memory (in blocks)."""

    policy: str
    size: int
    faults: Faults


@dataclass
class Result:
    """What simulate() returns; `blocks` is the number of different blocks."""

    name: str
    accesses: int
    blocks: int
    rows: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "accesses": self.accesses,
            "blocks": self.blocks,
            "rows": [
                {
                    "policy": row.policy,
                    "sees_hits": POLICIES[row.policy].sees_hits,
                    "size": row.size,
                    "misses": row.faults.misses,
                    "soft": row.faults.soft,
                    "part": row.faults.misses / self.accesses if self.accesses else 0.0,
                }
                for row in self.rows
            ],
        }


def simulate(
    name: str,
    accesses: Iterable[int],
    sizes: Callable[[int], Sequence[int]],
    policies: Sequence[str],
    progress: Progress = lambda _what, _part: None,
) -> Result:
    """Replay accesses.

    Args:
        name: of the accesses, for whoever reads the result.
        accesses: numbers of blocks.
        sizes: gets the number of different blocks, returns the sizes of memory to try, in blocks.
        policies: names in POLICIES.
        progress: called with what is being done and how much of the whole is done, 0 to 1.
    """
    sequence, blocks = numbered(accesses)
    rows = []
    todo = [(policy, size) for size in sizes(blocks) for policy in policies]
    for done, (policy, size) in enumerate(todo):
        progress(f"{name}: {policy}", done / len(todo))
        rows.append(Row(policy, size, POLICIES[policy].run(sequence, blocks, size)))
    return Result(name, len(sequence), blocks, rows)
