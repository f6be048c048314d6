# SPDX-License-Identifier: MIT
"""What is wanted of uswap beside its peers, and how near to it it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..common import Spread
from .figures import ROWS

__all__ = ["FIT_GOALS", "GOALS", "PROGRAM_GOALS", "Goal", "Verdict"]


@dataclass(frozen=True)
class Goal:
    """What is wanted, as a ratio.

    Attributes:
        key: its name.
        text: the ratio in words.
        of, by: what is divided by what: a peer, and a figure of it (a name of ROWS, or "density").
        least: the ratio is to be `bound` or more, else `bound` or less.
        numeric: only for numbers.
    """

    key: str
    text: str
    group: str
    of: tuple[str, str]
    by: tuple[str, str]
    bound: float
    least: bool = True
    numeric: bool = False

    def reached(self, ratio: float) -> bool:
        """Is it?"""
        return ratio >= self.bound if self.least else ratio <= self.bound


def _goals() -> Iterator[Goal]:
    def beside(key: str, group: str, row: str, peer: str, bound: float, **more: Any) -> Goal:
        label = ROWS[row].label if row in ROWS else row
        if row.startswith("random p"):
            label = f"random 4 KiB reads, {row.split()[1]}"
        return Goal(
            key, f"{label}: uswap/{peer}", group, ("uswap", row), (peer, row), bound, **more
        )

    yield beside("p50", "pooled", "random p50", "zram", 0.95, least=False)
    yield beside("p99", "pooled", "random p99", "zram", 0.08, least=False)
    yield beside("random", "pooled", "random", "zram", 2.0)
    yield beside("random2", "pooled", "random2", "zram", 2.0)
    yield beside("zipf", "pooled", "zipf", "zram", 2.0)
    yield beside("tenth", "pooled", "tenth", "zram", 2.0)
    yield beside("write", "pooled", "write", "zram", 1.5)
    yield beside("read", "pooled", "read", "zram", 6.0)
    yield beside("rmw", "pooled", "rmw", "zram", 4.0)
    for peer in ("zswap", "memmap"):
        for row in ("random", "zipf", "read", "rmw"):
            yield beside(f"{peer} {row}", "disk", row, peer, 2.0)
    yield Goal(
        "density",
        "bytes of data kept for a byte of RAM: uswap/zram",
        "pooled",
        ("uswap", "density"),
        ("zram", "density"),
        1.5,
        numeric=True,
    )
    yield Goal(
        "loaded",
        "p99 beside two busy threads, by the p99 of an idle machine: uswap",
        "pooled",
        ("uswap", "loaded p99"),
        ("uswap", "random p99"),
        5.0,
        least=False,
    )
    for one, two, what in (("random", "random2", "reads"), ("write", "write2", "writes")):
        yield Goal(
            f"threads {what}",
            f"random {what} a second, two threads by one: uswap",
            "pooled",
            ("uswap", two),
            ("uswap", one),
            1.7,
        )


GOALS = tuple(_goals())
#: The goals of programs: time of uswap by that of zram, at most, of all together and of the worst.
PROGRAM_GOALS = {"programs mean": 0.5, "programs worst": 1.0}
#: The goals where the data fit: time of uswap by that of plain memory, at most.
FIT_GOALS = {
    "touch": ("first touch of new memory: time uswap/plain", 1.2),
    "read": ("data that fit, sequential read: time uswap/plain", 1.01),
    "random": ("data that fit, random reads: time uswap/plain", 1.01),
}


@dataclass(frozen=True)
class Verdict:
    """A goal, and how near to it uswap is.

    Attributes:
        column: which uswap.
        ratio: over the rounds; None: something of it was not measured.
        reached: None where there is no ratio, or one of the two had nothing on the disk that it is about.
    """

    key: str
    text: str
    data: str
    over: int | None
    column: str
    bound: float
    least: bool
    ratio: Spread | None
    reached: bool | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "ratio": self.ratio._asdict() if self.ratio else None}
