# SPDX-License-Identifier: MIT
"""Results of benchmarks that nobody has run, to show."""

from __future__ import annotations

import random
from collections.abc import Sequence

from uswap.bench import common, peers, subject

MIB = 1 << 20
MACHINE = common.Machine("Some CPU", 2, "6.18.0", 8 << 30, "3.11.7", "0.1.0")


def made_up(
    *,
    data: Sequence[str] = ("int64",),
    over: Sequence[int] = (4,),
    blocks: Sequence[int] = (),
    faults: Sequence[str] = (),
    rounds: int = 3,
    names: Sequence[str] = tuple(peers.PEERS),
    speed: float = 4.0,
) -> peers.Result:
    """A result in which uswap is `speed` times as fast as zram, and zswap and np.memmap half as fast as zram."""
    rng = random.Random(3)
    config = peers.Peers(
        peers=names, data=data, over=over, blocks=blocks, faults=faults, rounds=rounds
    )
    about = {"zram": "lz4", "zswap": "lzo-rle, at most 241 MiB of RAM", "cgroup": "version 1"}
    result = peers.Result(config, MACHINE, about)
    speeds = {"uswap": speed, "zram": 1, "naive": 0.7, "zswap": 0.5, "memmap": 0.5, "plain": 50}
    cases = [
        (case, number)
        for kind in data
        for times in over
        for number in range(rounds)
        for group in config.groups()
        for case in peers.cases_of(config, group, kind, times, {})
    ]
    for case, number in cases:
        fast = speeds[case.name] * rng.uniform(0.97, 1.03)
        times_ns = {"p50": round(1e4 / fast), "p90": 1, "p99": round(8e5 / fast), "p999": 1}
        work = {
            name: {"count": 50_000, "bytes": 200 * MIB, "ns": round(1e9 / fast), **times_ns}
            for name in peers.GROUP_WORK[case.group]
        }
        kept = {"uswap": 4.0, "zram": 2.0, "naive": 2.1, "zswap": 2.4}.get(case.name)
        out = 0.4 if case.group == "disk" and case.name in ("uswap", "zswap") else None
        run = peers.Run(case.group, case.data, case.over, case.column, number, work, kept, out, {})
        result.runs.append(run)
    for kind in data:
        for column in (one.name for one in peers.columns_of(config)):
            took = {"touch": 1300, "read": 1012, "random": 1000}
            one = {work: {"plain": [1000], "uswap": [took[work]]} for work in subject.FITS}
            result.fits[kind, column] = [one] * rounds
    result.others = 0.01
    return result
