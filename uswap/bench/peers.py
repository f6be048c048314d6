# SPDX-License-Identifier: MIT
"""uswap beside the kernel's own swap, a mapped file, a naive pager and memory without a limit.

All have the same data, the same limit on what is resident, and the same workloads (see subject.py), each
in a process of its own. They take turns: in each round every peer is measured once, and a ratio is the
median of the ratios of the rounds.

    pooled    data that are out stay in RAM, compressed: uswap's pool, zram, the naive pager
    disk      data that are out fill a small pool, and what the pool has no room for is on a disk: zswap
              before a swap file, uswap with a pool as large as zswap's before its own, np.memmap

The kernel's peers and np.memmap run in a memory cgroup with the limit; uswap and the naive pager keep the
limit themselves. Plain memory has none: it says how far all of them are from having enough.

Where the data fit into the limit, uswap is measured beside plain memory too, in turn in one process.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import options as _options
from ..sizes import format_size, parse_size
from . import kernel
from .common import CHUNK, DATA, Load, Machine, Progress, Spread, load_codec, make_data
from .subject import NUMBERS, WORKS

__all__ = [
    "GOALS",
    "GROUPS",
    "LEAST",
    "PEERS",
    "ROWS",
    "WORKS",
    "Goal",
    "Peers",
    "Result",
    "Row",
    "Run",
    "SubjectFailed",
    "Verdict",
    "measure",
]

#: Peers by name, and what each is.
PEERS = {
    "uswap": "uswap",
    "zram": "the kernel's swap to compressed RAM",
    "naive": "a userfaultfd pager without uswap's design",
    "zswap": "the kernel's swap to a file, zswap before it",
    "memmap": "a mapped file",
    "plain": "memory without a limit",
}
#: Which of them are compared with each other.
GROUPS = {
    "pooled": ("uswap", "zram", "naive", "plain"),
    "disk": ("uswap", "zswap", "memmap", "plain"),
}
#: And by which workloads.
GROUP_WORK = {
    "pooled": WORKS,
    "disk": tuple(one for one in WORKS if one not in ("random2", "write2", "loaded")),
}
MIB = 1 << 20
LEAST_ON_DISK = 0.01  # of what is out; with less, the disk was not measured
LEAST = 2 * MIB  # of the limit: below, neither the kernel nor uswap has room to work in
PLAIN = 0.4  # of the time of a workload is enough for memory without a limit
SEGMENT = MIB  # of uswap's swap file
MARGIN = 64 * MIB  # beyond the data, of what has to hold them
SLOWEST = 4 << 20  # bytes a second: what takes longer has hung
START = 120.0  # seconds more
TRIES = 3  # of a run that the kernel ends, out of memory


class SubjectFailed(RuntimeError):
    """The process that ran the workloads has failed, or taken too long; the message has its last words.

    Args:
        found: what it had measured.
        signal: that has ended it, sent by somebody else; 0: none.
    """

    def __init__(self, message: str, found: dict[str, Any] | None = None, signal: int = 0) -> None:
        super().__init__(message)
        self.found = found or {}
        self.signal = signal


@dataclass(frozen=True)
class Row:
    """A figure of a workload.

    Attributes:
        work: a name of subject.WORKS.
        figure: "rate" (bytes a second), "count" (a second), or a quantile (nanoseconds).
        scale: of the unit.
        more: more is better.
    """

    key: str
    label: str
    work: str
    figure: str
    unit: str
    scale: float
    more: bool = True

    def of(self, run: Run) -> float | None:
        """The figure of a run, in bytes/s, 1/s or ns; None where it was not measured."""
        found = run.work.get(self.work)
        if found is None:
            return None
        if self.figure == "rate":
            return float(found["bytes"] / found["ns"] * 1e9)
        if self.figure == "count":
            return float(found["count"] / found["ns"] * 1e9)
        return float(found[self.figure])


#: What the table shows, in this order.
ROWS = {
    row.key: row
    for row in (
        Row("fill", "filled with data", "fill", "rate", "MB/s", 1e-6),
        Row("read", "sequential read", "read", "rate", "MB/s", 1e-6),
        Row("rmw", "sequential read-modify-write", "rmw", "rate", "MB/s", 1e-6),
        Row("strided", "strided read, 64 KiB apart", "strided", "count", "1000/s", 1e-3),
        Row("random", "random 4 KiB reads", "random", "count", "1000/s", 1e-3),
        Row("random p50", "    p50", "random", "p50", "us", 1e-3, more=False),
        Row("random p99", "    p99", "random", "p99", "us", 1e-3, more=False),
        Row("zipf", "Zipf 0.99 reads", "zipf", "count", "1000/s", 1e-3),
        Row("write", "random 4 KiB writes", "write", "count", "1000/s", 1e-3),
        Row("random2", "random reads, two threads", "random2", "count", "1000/s", 1e-3),
        Row("write2", "random writes, two threads", "write2", "count", "1000/s", 1e-3),
        Row("loaded p50", "reads beside two busy threads, p50", "loaded", "p50", "us", 1e-3, False),
        Row("loaded p99", "    p99", "loaded", "p99", "us", 1e-3, more=False),
        Row("matmul", "matrix multiply by panels", "matmul", "count", "panels/s", 1.0),
        Row("sort", "sort in place", "sort", "rate", "MB/s", 1e-6),
    )
}


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

    yield beside("p50", "pooled", "random p50", "zram", 1.0, least=False)
    yield beside("p99", "pooled", "random p99", "zram", 0.1, least=False)
    yield beside("zipf", "pooled", "zipf", "zram", 2.0)
    yield beside("read", "pooled", "read", "zram", 5.0)
    yield beside("rmw", "pooled", "rmw", "zram", 5.0)
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
#: The goals where the data fit: time of uswap by that of plain memory, at most.
FIT_GOALS = {
    "touch": ("first touch of new memory: time uswap/plain", 1.2),
    "read": ("data that fit, sequential read: time uswap/plain", 1.01),
    "random": ("data that fit, random reads: time uswap/plain", 1.01),
}


@dataclass(frozen=True)
class Peers:
    """What to measure.

    Attributes:
        peers: names of PEERS.
        work: names of subject.WORKS; "fill" comes always.
        data: names of common.DATA.
        over: how many times the limit the data are.
        size, disk_size: bytes of data, pooled and on a disk.
        seconds: of each workload and round; a sequential pass may take some times as long.
        directory: where files are made.
        blocks: bytes of uswap's blocks; each is a column.
        fits: measure what fits as well.
    """

    peers: Sequence[str] = tuple(PEERS)
    work: Sequence[str] = WORKS
    data: Sequence[str] = ("int64",)
    over: Sequence[int] = (4,)
    size: int = 256 * MIB
    disk_size: int = 1024 * MIB
    rounds: int = 5
    seconds: float = 0.4
    directory: str = "/var/tmp"
    blocks: Sequence[int] = ()
    fits: bool = True

    def groups(self) -> dict[str, list[str]]:
        """The peers of each group that is measured: one with a peer of its own, or the first."""
        found = {}
        for group, names in GROUPS.items():
            chosen = [name for name in names if name in self.peers]
            if set(chosen) - {"uswap", "plain"}:
                found[group] = chosen
        if not found:
            found["pooled"] = [name for name in GROUPS["pooled"] if name in self.peers]
        return found

    def size_of(self, group: str) -> int:
        """Bytes of data."""
        return self.size if group == "pooled" else self.disk_size

    def limit_of(self, group: str, over: int) -> int:
        """Bytes that may be resident."""
        return self.size_of(group) // over // MIB * MIB


@dataclass
class Run:
    """One peer in one round.

    Attributes:
        peer: a column of the table: a name of PEERS, or "uswap 4 KiB".
        work: by workload: count, bytes, ns, major_faults, and of random accesses quantiles in ns.
        density: bytes of data that are out for a byte of RAM they take; None where that has no meaning.
        out: of the bytes of data that were out once they were filled in, the part that was on a disk; None
            where there is none, or it is not known.
        about: what the peer says of itself at the end.
        seconds: its process took, preparations included.
    """

    group: str
    data: str
    over: int
    peer: str
    round: int
    work: dict[str, dict[str, Any]]
    density: float | None
    out: float | None
    about: dict[str, Any]
    seconds: float = 0.0


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
        """Peers of a group that were measured, uswap first."""
        found = {run.peer for run in self.runs if run.group == group}
        order = [name for name in found if name.startswith("uswap ")]
        order.sort(key=lambda name: parse_size(name.removeprefix("uswap "), "block"))
        return order + [name for name in PEERS if name in found]

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

    def ratio(
        self, case: tuple[str, str, int], of: tuple[str, str], by: tuple[str, str]
    ) -> Spread | None:
        """One figure by another, of the same round; each a peer and a figure of it."""
        ones, others = self.values(case, *of), self.values(case, *by)
        ratios = [ones[number] / others[number] for number in ones if others.get(number)]
        return Spread.of(ratios) if ratios else None

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


# ---- measuring


@dataclass(frozen=True)
class Case:
    """One peer, to be set up and run.

    Attributes:
        column: what it is called in the table.
        name: a name of PEERS.
        block: of uswap's.
        pool: bytes of zswap's pool, and of uswap's in front of its swap file.
    """

    config: Peers
    group: str
    data: str
    over: int
    column: str
    name: str
    block: int
    pool: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.config.size_of(self.group)

    @property
    def limit(self) -> int:
        """Bytes that may be resident."""
        return self.config.limit_of(self.group, self.over)

    def options(self) -> dict[str, Any]:
        """Of uswap's pager."""
        found: dict[str, Any] = {"limit": self.limit, "block": self.block}
        if self.group == "pooled":
            found["pool"] = self.size * 5 // 4 + MARGIN
        else:
            found |= {
                "pool": self.pool,
                "swapfile": self.config.directory,
                "swap": _segments(2 * self.size + 4 * MARGIN),
                "segment": SEGMENT,
            }
        return found

    @contextlib.contextmanager
    def spec(
        self, number: int, chunk: tuple[int, int], about: dict[str, str]
    ) -> Iterator[dict[str, Any]]:
        """Set up what the peer needs, and say what its process is to do.

        Args:
            number: of the round.
            chunk: a descriptor of the data, and their length.
        """
        spec: dict[str, Any] = {
            "memory": {"uswap": "paged", "naive": "naive", "memmap": "mapped"}.get(
                self.name, "anonymous"
            ),
            "parent": os.getpid(),
            "round": number,
            "chunk": chunk,
            "data": self.data,
            "size": self.size,
            "limit": self.limit,
            "work": [one for one in self.config.work if one in GROUP_WORK[self.group]],
            "seconds": self.config.seconds * (PLAIN if self.name == "plain" else 1),
            "filled": self.name == "memmap",
        }
        with contextlib.ExitStack() as undo:
            if self.name == "uswap":
                spec["options"] = self.options()
            elif self.name == "zram":
                device = undo.enter_context(kernel.zram(4 * self.size + MARGIN))
                spec["statistics"] = device.statistics
                about["zram"] = device.compressor
            elif self.name == "zswap":
                swap = undo.enter_context(kernel.zswap(self.config.directory, self.size + MARGIN))
                spec["zswap"] = True
                about["zswap"] = f"{swap.compressor}, at most {format_size(swap.pool)} of RAM"
            elif self.name == "memmap":
                spec["file"] = undo.enter_context(
                    data_file(self.config.directory, chunk, self.size)
                )
            if self.name in ("zram", "zswap", "memmap"):
                group = undo.enter_context(kernel.cgroup(self.limit))
                spec["cgroup"] = group.procs
                about["cgroup"] = f"version {group.version}"
            yield spec


def _segments(size: int) -> int:
    return -(-size // SEGMENT) * SEGMENT


@contextlib.contextmanager
def data_file(directory: str, chunk: tuple[int, int], size: int) -> Iterator[str]:
    """Make a file of so many bytes of data, none of which the page cache holds; it goes at the end.

    Args:
        chunk: a descriptor of the data, and their length; they repeat.
    """
    data = os.pread(chunk[0], chunk[1], 0)
    with tempfile.NamedTemporaryFile(
        prefix=f"{kernel.NAME}-", suffix=".data", dir=directory, buffering=0
    ) as file:
        for at in range(0, size, len(data)):
            file.write(data[: size - at])
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file.name


def run_subject(spec: dict[str, Any], limit: float) -> dict[str, Any]:
    """Run a subject in a process of its own, which is killed after `limit` seconds.

    Raises:
        SubjectFailed: it ended with an error, or was killed.
    """
    # As the pager is started: what lies in the current directory must not be imported in its place.
    start = f"import sys; sys.path[:] = {sys.path!r}; from uswap.bench.subject import main; main()"
    started = time.monotonic()
    process: subprocess.Popen[str] | None = None
    with tempfile.TemporaryFile("w+") as errors:
        try:
            with kernel.shielded():  # or it might run on, unknown
                process = subprocess.Popen(
                    [sys.executable, "-c", start],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=[spec["chunk"][0]],
                    text=True,
                    start_new_session=True,  # a terminal's signals are for this process
                )
            answer, _ = process.communicate(json.dumps(spec), timeout=limit)
        except BaseException as exc:
            if process is not None:
                with kernel.shielded():
                    process.kill()
                    process.communicate()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise SubjectFailed(f"killed after {limit:.0f} s") from None
            raise
        errors.seek(0)
        words = errors.read().strip()
    found: dict[str, Any] = {"work": {}, "seconds": time.monotonic() - started}
    for line in answer.splitlines():
        piece = json.loads(line)
        found["work"] |= piece.pop("work", {})
        found |= piece
    if process.returncode != 0:
        last = "\n".join(words.splitlines()[-12:])
        raise SubjectFailed(
            f"exit status {process.returncode}: {last}", found, max(0, -process.returncode)
        )
    return found


def _cases(config: Peers, group: str, data: str, over: int, skipped: dict[str, str]) -> list[Case]:
    found = []
    pool = kernel.zswap_pool()
    for name in config.groups()[group]:
        if name in skipped:
            continue
        for column, block in _columns(config) if name == "uswap" else [(name, 0)]:
            found.append(Case(config, group, data, over, column, name, block, pool))
    return found


def _columns(config: Peers) -> list[tuple[str, int]]:
    """What each uswap is called, and its blocks in bytes."""
    blocks = config.blocks or (_options.resolve().block,)
    if len(blocks) == 1:
        return [("uswap", blocks[0])]
    return [(f"uswap {format_size(block)}", block) for block in blocks]


def _skipped(config: Peers) -> dict[str, str]:
    """What can't be measured here, and why.

    Raises:
        kernel.Unavailable: the machine swaps already, so figures would be mixed.
    """
    found: dict[str, str] = {}
    wanted = set(config.peers) & {"zram", "zswap", "memmap"}
    if wanted & {"zram", "zswap"} and (devices := kernel.foreign_swap()):
        raise kernel.Unavailable(
            f"the machine swaps to {', '.join(devices)} already, so the figures of the kernel's peers would "
            f"be mixed; `swapoff {devices[0]}` first, or leave them out: "
            f"--peers {','.join(one for one in config.peers if one not in ('zram', 'zswap'))}"
        )
    group = kernel.why_no_cgroup() if wanted else None
    for peer, why in (
        ("zram", kernel.why_no_zram),
        ("zswap", kernel.why_no_zswap),
        ("memmap", lambda: None),
    ):
        if peer in wanted and (reason := group or why()):
            found[peer] = reason
    if set(config.work) & {"matmul", "sort"} and importlib.util.find_spec("numpy") is None:
        found["matmul"] = found["sort"] = "needs numpy: pip install 'uswap[numpy]'"
    return found


def measure(config: Peers, progress: Progress = lambda _what, _part: None) -> Result:
    """Measure; what was set up is undone also when it ends by an exception, SIGINT or SIGTERM.

    Raises:
        kernel.Unavailable: the machine swaps already.
        SubjectFailed: a peer failed, or read other bytes than were written.
        OSError: there is no room, or no codec.
    """
    load_codec("lz4")
    load = Load()
    result = Result(config, Machine.here())
    result.skipped = _skipped(config)
    result.about["kernel"] = kernel.settings(config.directory)
    config = replace(config, work=[one for one in config.work if one not in result.skipped])
    with kernel.terminable(), contextlib.ExitStack() as undo:
        steps: list[tuple[str, int, Callable[[], None]]] = []
        for data in config.data:
            steps += _steps(result, config, data, undo.enter_context(_chunk(config, data)))
        whole, done = sum(size for _, size, _ in steps), 0
        for what, size, step in steps:
            progress(what, done / whole)
            step()
            done += size
    result.others = load.others()
    progress("", 1.0)
    return result


@contextlib.contextmanager
def _chunk(config: Peers, data: str) -> Iterator[tuple[int, int]]:
    """Data that subjects repeat: a descriptor, and their length."""
    length = min(CHUNK, config.size, config.disk_size)
    fd = os.memfd_create("uswap-peers-data")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(make_data(DATA[data], length))
        yield fd, length
    finally:
        os.close(fd)


def _steps(
    result: Result, config: Peers, data: str, chunk: tuple[int, int]
) -> list[tuple[str, int, Callable[[], None]]]:
    """What there is to do: its name, how much it is (bytes), and what does it."""
    found: list[tuple[str, int, Callable[[], None]]] = []
    for over in config.over:
        for number in range(config.rounds):
            for group in config.groups():
                cases = _cases(config, group, data, over, result.skipped)
                turn = number % max(1, len(cases))
                for case in cases[turn:] + cases[:turn]:
                    what = f"round {number + 1}: {data}, {over}x, {group}, {case.column}"
                    found.append(
                        (what, case.size, functools.partial(_run, result, case, number, chunk))
                    )
    if config.fits and "uswap" in config.peers:
        for number in range(config.rounds):
            for column, block in _columns(config):
                fit = functools.partial(_fit, result, config, data, column, block, number, chunk)
                found.append((f"round {number + 1}: {data}, fits", config.size // 2, fit))
    return found


def _run(result: Result, case: Case, number: int, chunk: tuple[int, int]) -> None:
    name = f"{case.column} ({case.group}, {case.data}, {case.over}x, round {number + 1})"
    for left in reversed(range(TRIES)):
        with case.spec(number, chunk, result.about) as spec:
            try:
                found = run_subject(spec, START + case.size * (1 + len(WORKS)) / SLOWEST)
                break
            except SubjectFailed as exc:
                # Where a cgroup can't be told not to (version 2) the kernel ends a process when reclaim finds
                # nothing though there is swap enough. That is the peer's failing, not the benchmark's.
                if exc.signal != signal.SIGKILL or "cgroup" not in spec:
                    raise SubjectFailed(f"{name}: {exc}") from None
                if left:
                    continue
                found = exc.found
                missing = [one for one in spec["work"] if one not in found["work"]]
                result.killed[name] = ", ".join(missing)
    result.runs.append(
        Run(
            case.group,
            case.data,
            case.over,
            case.column,
            number,
            found["work"],
            found.get("density"),
            found.get("out"),
            found.get("about", {}),
            found.get("seconds", 0.0),
        )
    )


def _fit(
    result: Result,
    config: Peers,
    data: str,
    column: str,
    block: int,
    number: int,
    chunk: tuple[int, int],
) -> None:
    limit = 2 * config.size + MARGIN
    spec = {
        "memory": "fits",
        "parent": os.getpid(),
        "round": number,
        "chunk": chunk,
        "data": data,
        "size": config.size,
        "limit": limit,
        "work": [],
        "seconds": config.seconds,
        "options": {"limit": limit, "block": block, "pool": MARGIN},
    }
    found = run_subject(spec, START + config.size / SLOWEST)["fits"]
    result.fits.setdefault((data, column), []).append(found)
