# SPDX-License-Identifier: MIT
"""What is measured of a peer in a round, and the figures that are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ROWS", "Row", "Run"]


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
class Row:
    """A figure of a workload.

    Attributes:
        work: a name of subject.WORKS.
        figure: "rate" (bytes a second), "count" (a second), "mean" or a quantile (nanoseconds), or
            "scaling": how many times the count a second of another workload.
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
    by: str = ""
    """The other workload of a scaling."""

    def of(self, run: Run) -> float | None:
        """The figure of a run, in bytes/s, 1/s, ns or times; None where it was not measured."""
        found = run.work.get(self.work)
        if found is None:
            return None
        if self.figure == "rate":
            return float(found["bytes"] / found["ns"] * 1e9)
        if self.figure == "count":
            return float(found["count"] / found["ns"] * 1e9)
        if self.figure == "scaling":
            one, other = ROWS[self.work].of(run), ROWS[self.by].of(run)
            return one / other if one and other else None
        if self.figure == "mean":
            return float(found["ns"] * found.get("threads", 1) / found["count"])
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
        Row("random mean", "    mean", "random", "mean", "us", 1e-3, more=False),
        Row("random2", "random reads, two threads", "random2", "count", "1000/s", 1e-3),
        Row("random2 p50", "    p50", "random2", "p50", "us", 1e-3, more=False),
        Row("random2 p99", "    p99", "random2", "p99", "us", 1e-3, more=False),
        Row("random2 mean", "    mean", "random2", "mean", "us", 1e-3, more=False),
        Row("random scaling", "    by one thread", "random2", "scaling", "x", 1.0, by="random"),
        Row("zipf", "Zipf 0.99 reads", "zipf", "count", "1000/s", 1e-3),
        Row("tenth", "nine reads in ten of a tenth", "tenth", "count", "1000/s", 1e-3),
        Row("write", "random 4 KiB writes", "write", "count", "1000/s", 1e-3),
        Row("write2", "random writes, two threads", "write2", "count", "1000/s", 1e-3),
        Row("write scaling", "    by one thread", "write2", "scaling", "x", 1.0, by="write"),
        Row("loaded p50", "reads beside two busy threads, p50", "loaded", "p50", "us", 1e-3, False),
        Row("loaded p99", "    p99", "loaded", "p99", "us", 1e-3, more=False),
        Row("matmul", "matrix multiply by panels", "matmul", "count", "panels/s", 1.0),
        Row("gather", "gather of rows, 512 bytes each", "gather", "rate", "MB/s", 1e-6),
        Row("scatter", "scatter of rows, 512 bytes each", "scatter", "rate", "MB/s", 1e-6),
        Row("columns", "sums of columns", "columns", "rate", "MB/s", 1e-6),
        Row("transpose", "transpose", "transpose", "rate", "MB/s", 1e-6),
        Row("argsort", "stable argsort of such rows", "argsort", "rate", "MB/s", 1e-6),
        Row("exchange", "shuffle of rows, 512 bytes each", "exchange", "rate", "MB/s", 1e-6),
        Row(
            "sklearn-split", "scikit-learn: train_test_split", "sklearn-split", "rate", "MB/s", 1e-6
        ),
        Row(
            "sklearn-forest", "scikit-learn: random forest", "sklearn-forest", "rate", "MB/s", 1e-6
        ),
        Row("pandas-sort", "pandas: sort_values", "pandas-sort", "rate", "MB/s", 1e-6),
        Row("polars-sort", "Polars: sort", "polars-sort", "rate", "MB/s", 1e-6),
        Row("arrow-sort", "Arrow: sort_indices", "arrow-sort", "rate", "MB/s", 1e-6),
        Row(
            "numba-histogram",
            "Numba: histogram of rows",
            "numba-histogram",
            "rate",
            "MB/s",
            1e-6,
        ),
        Row("numba-columns", "Numba: sums of columns", "numba-columns", "rate", "MB/s", 1e-6),
        Row("sort", "sort in place", "sort", "rate", "MB/s", 1e-6),
    )
}
