# SPDX-License-Identifier: MIT
"""What was found: runs, the figures over their rounds, ratios, and verdicts."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from ..common import Machine, Spread
from ..programs import PROGRAMS
from ..subject import NUMBERS
from .case import columns_of
from .comparison import PEERS, Peers
from .figures import ROWS, Run
from .goals import FIT_GOALS, GOALS, PROGRAM_GOALS, Verdict

__all__ = ["Result"]

LEAST_ON_DISK = 0.01  # of what is out; with less, the disk was not measured


@dataclass
class Result:
    """What measure() returns.

    Attributes:
        about: of the kernel's peers, how they were set up.
        skipped: peers and workloads that were left out, and why.
        killed: runs that the kernel has ended, out of memory, each time they were tried, and the workloads
            that it left unmeasured.
        fits: by data, and column of the table: rounds of nanoseconds, as subject.fits gives them.
    """

    config: Peers
    machine: Machine
    about: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    killed: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    fits: dict[tuple[str, str], list[dict[str, dict[str, list[int]]]]] = field(default_factory=dict)
    others: float | None = None

    def columns(self, group: str) -> list[str]:
        """Peers of a group that were measured, uswap first, and of these the one with the defaults."""
        found = {run.peer for run in self.runs if run.group == group}
        order = [*(one.name for one in columns_of(self.config)), *PEERS]
        return [name for name in dict.fromkeys(order) if name in found]

    def uswaps(self, group: str) -> list[str]:
        """Those of them that are uswap."""
        return [peer for peer in self.columns(group) if peer.startswith("uswap")]

    def cases(self) -> list[tuple[str, str, int]]:
        """Group, data and overcommitment, as they were measured."""
        return list(dict.fromkeys((run.group, run.data, run.over) for run in self.runs))

    def values(self, case: tuple[str, str, int], peer: str, figure: str) -> dict[int, float]:
        """A figure (a name of ROWS, or "density") by round, where it was measured."""
        found = {}
        for run in self.runs:
            if (run.group, run.data, run.over, run.peer) == (*case, peer):
                value = run.density if figure == "density" else ROWS[figure].of(run)
                if value is not None:
                    found[run.round] = value
        return found

    def spread(self, case: tuple[str, str, int], peer: str, figure: str) -> Spread | None:
        """The figure over the rounds; None where it was not measured."""
        found = self.values(case, peer, figure)
        return Spread.of(found.values()) if found else None

    def ratios(
        self, case: tuple[str, str, int], of: tuple[str, str], by: tuple[str, str]
    ) -> dict[int, float]:
        """One figure by another, by round, where both were measured; each a peer and a figure of it."""
        ones, others = self.values(case, *of), self.values(case, *by)
        return {number: ones[number] / others[number] for number in ones if others.get(number)}

    def ratio(
        self, case: tuple[str, str, int], of: tuple[str, str], by: tuple[str, str]
    ) -> Spread | None:
        """The same over the rounds; None where there is none."""
        found = self.ratios(case, of, by)
        return Spread.of(found.values()) if found else None

    def on_disk(self, case: tuple[str, str, int], peer: str) -> Spread | None:
        """The part that is on the disk of what was out once the data were filled in; None: not known."""
        found = []
        for run in self.runs:
            if (run.group, run.data, run.over, run.peer) == (*case, peer) and run.out is not None:
                found.append(run.out)
        return Spread.of(found) if found else None

    def is_on_disk(self, case: tuple[str, str, int], peer: str) -> bool:
        """Whether a peer had something on the disk, as far as that is known; where none is meant, yes."""
        part = self.on_disk(case, peer)
        return case[0] != "disk" or part is None or part.median >= LEAST_ON_DISK

    def fit_ratio(self, data: str, column: str, work: str) -> Spread | None:
        """Time of uswap by that of plain memory where the data fit, a value a round."""
        rounds = self.fits.get((data, column), [])
        if not rounds:
            return None
        return Spread.of(
            Spread.of(
                u / p for u, p in zip(one[work]["uswap"], one[work]["plain"], strict=True)
            ).median
            for one in rounds
        )

    def _program_verdicts(self, case: tuple[str, str, int], column: str) -> list[Verdict]:
        """Of the programs that both uswap and zram have run: the geometric mean, and the worst."""
        # Rates the other way round: time of uswap by that of zram for the same work.
        found = {name: self.ratios(case, ("zram", name), (column, name)) for name in PROGRAMS}
        times = {name: by_round for name, by_round in found.items() if by_round}
        if not times:
            return []
        rounds = set.intersection(*(set(one) for one in times.values()))
        worst = max(times, key=lambda name: statistics.median(times[name].values()))
        means = [
            statistics.geometric_mean(one[number] for one in times.values()) for number in rounds
        ]
        texts = {
            "programs mean": (
                f"time of programs, geometric mean over {len(times)} of {len(PROGRAMS)}: uswap/zram",
                Spread.of(means) if means else None,
            ),
            "programs worst": (
                f"time of the worst program, {worst}: uswap/zram",
                Spread.of(times[worst].values()),
            ),
        }
        return [
            Verdict(
                key, text, case[1], case[2], column, PROGRAM_GOALS[key], False, ratio,
                ratio.median <= PROGRAM_GOALS[key],
            )
            for key, (text, ratio) in texts.items()
            if ratio is not None
        ]  # fmt: skip

    def verdicts(self) -> list[Verdict]:
        """All goals that have to do with what was measured."""
        found = []
        for case in self.cases():
            group, data, over = case
            for goal in GOALS:
                if goal.group != group or (goal.numeric and data not in NUMBERS):
                    continue
                for column in self.uswaps(group):
                    of, by = (
                        (column if peer == "uswap" else peer, figure)
                        for peer, figure in (goal.of, goal.by)
                    )
                    ratio = self.ratio(case, of, by)
                    if ratio is None:
                        continue
                    reached: bool | None = goal.reached(ratio.median)
                    # What never left RAM says nothing of the disk.
                    if not all(self.is_on_disk(case, peer) for peer, _ in (of, by)):
                        reached = None
                    found.append(
                        Verdict(
                            goal.key, goal.text, data, over, column, goal.bound, goal.least, ratio,
                            reached,
                        )
                    )  # fmt: skip
            for column in self.uswaps(group):
                found += self._program_verdicts(case, column)
        for (data, column), _ in self.fits.items():
            for work, (text, bound) in FIT_GOALS.items():
                ratio = self.fit_ratio(data, column, work)
                assert ratio is not None
                found.append(
                    Verdict(
                        f"fits {work}", text, data, None, column, bound, False, ratio,
                        ratio.median <= bound,
                    )
                )  # fmt: skip
        return found

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        c = self.config
        return {
            "bench": "peers",
            "machine": self.machine.as_dict(),
            "others": self.others,
            "about": self.about,
            "skipped": self.skipped,
            "killed": self.killed,
            "peers": list(c.peers),
            "work": list(c.work),
            "data": list(c.data),
            "over": list(c.over),
            "size": c.size,
            "disk_size": c.disk_size,
            "rounds": c.rounds,
            "seconds": c.seconds,
            "blocks": list(c.blocks),
            "faults": list(c.faults),
            "goals": [one.as_dict() for one in self.verdicts()],
            "table": [self._table(case) for case in self.cases()],
            "fits": [
                {"data": data, "peer": column, "rounds": rounds}
                for (data, column), rounds in self.fits.items()
            ],
            "runs": [vars(run) for run in self.runs],
        }

    def _table(self, case: tuple[str, str, int]) -> dict[str, Any]:
        group, data, over = case
        rows = {}
        for figure in (*ROWS, "density"):
            cells = {
                peer: spread._asdict()
                for peer in self.columns(group)
                if (spread := self.spread(case, peer, figure)) is not None
            }
            ratios = {
                f"{one}/{other}": ratio._asdict()
                for one in self.uswaps(group)
                for other in self.columns(group)
                if not other.startswith("uswap")
                and (ratio := self.ratio(case, (one, figure), (other, figure))) is not None
            }
            if cells:
                rows[figure] = {"figures": cells, "ratios": ratios}
        return {"group": group, "data": data, "over": over, "rows": rows}
