# SPDX-License-Identifier: MIT
"""A trace in plain text, and what policies made of accesses."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..sizes import format_size
from ..trace.file import AHEAD, OUT, PRESENT, Trace
from ..trace.policies import POLICIES
from ..trace.simulate import Result
from . import table

__all__ = ["show", "show_dict", "simulated"]

MOST = 20  # regions in the table


def show_dict(trace: Trace, distances: tuple[int, list[int]] | None) -> dict[str, object]:
    """What `uswap trace show --json` prints; times in ns, sizes in bytes.

    Args:
        distances: what trace.reuse.distances() says of the accesses, or None if it was not asked.
    """
    touched, counted = _by_region(trace)
    out: dict[str, object] = {
        "path": trace.path,
        "version": trace.version,
        "started": trace.started,
        "seconds": trace.seconds,
        "pid": trace.pid,
        "limit": trace.limit,
        "records": len(trace.what),
        "missed": trace.missed,
        "homeless": trace.homeless,
        "cut": trace.cut,
        "faults": trace.faults,
        "writes": sum(f for what, f in zip(trace.what, trace.flags, strict=True) if what < AHEAD),
        "ahead": trace.what.count(AHEAD),
        "evicted": trace.what.count(OUT),
        "dropped": sum(f for what, f in zip(trace.what, trace.flags, strict=True) if what == OUT),
        "touched": sum(touched),
        "regions": [
            {
                "index": index,
                "id": region.id,
                "block": region.block,
                "length": region.length,
                "blocks": region.blocks,
                "address": region.address,
                "added": region.added,
                "removed": region.removed,
                "touched": touched[index],
                "accesses": counted[index],
            }
            for index, region in enumerate(trace.regions)
        ],
    }
    if distances is not None:
        out["reuse"] = {"first": distances[0], "distances": distances[1]}
    return out


def _by_region(trace: Trace) -> tuple[list[int], list[int]]:
    """Different blocks that were accessed, and accesses, by region."""
    bounds = [region.base + region.blocks for region in trace.regions]
    touched: list[set[int]] = [set() for _ in bounds]
    counted = [0] * len(bounds)
    at = low = high = 0
    for what, block in zip(trace.what, trace.blocks, strict=True):
        if what in (OUT, PRESENT):
            continue
        if not low <= block < high:
            at = next(k for k, bound in enumerate(bounds) if block < bound)
            low, high = trace.regions[at].base, bounds[at]
        touched[at].add(block)
        counted[at] += 1
    return [len(blocks) for blocks in touched], counted


def show(trace: Trace, distances: tuple[int, list[int]]) -> str:
    """What a trace holds, for people."""
    touched, counted = _by_region(trace)
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(trace.started / 1e9))
    lines = [
        f"{trace.path}: process {trace.pid}, {started}, {trace.seconds:.1f} s, limit "
        f"{format_size(trace.limit)}",
        "",
    ]
    rows = [
        (
            str(index),
            format_size(region.block),
            format_size(region.length),
            f"{region.blocks:,}",
            f"{touched[index]:,}",
            f"{counted[index]:,}",
            f"{region.added / 1e9:.2f}",
            None if region.removed is None else f"{region.removed / 1e9:.2f}",
        )
        for index, region in enumerate(trace.regions)
    ]
    heads = [">region", ">block", ">bytes", ">blocks", ">touched", ">accesses", ">from s", ">to s"]
    lines.append(table.render(heads, rows[:MOST]))
    if len(rows) > MOST:
        lines.append(f"and {len(rows) - MOST} more (--json has them)")
    writes: dict[int, int] = {}
    for what, flag in zip(trace.what, trace.flags, strict=True):
        writes[what] = writes.get(what, 0) + flag
    lines += [
        "",
        table.render(
            ["faults", ">number", ">writes"],
            [
                (kind, f"{count:,}", f"{writes.get(number, 0):,}")
                for number, (kind, count) in enumerate(trace.faults.items())
                if count
            ],
        ),
        "",
        f"swapped in ahead: {trace.what.count(AHEAD):,} blocks; evicted: {trace.what.count(OUT):,}, "
        f"of which {writes.get(OUT, 0):,} were clean",
        "",
        _distances(*distances),
    ]
    if trace.missed:
        lines.append(f"{trace.missed:,} records are missing: the pager's buffer was full")
    if trace.homeless:
        lines.append(f"{trace.homeless:,} records are of no region that is known, and left out")
    if trace.cut:
        lines.append("the file ends within a record: it is being written, or was cut off")
    return table.page(lines)


def _distances(first: int, counts: Sequence[int]) -> str:
    whole = first + sum(counts)
    rows: list[tuple[str, ...]] = [
        ("first access", f"{first:,}", f"{first / max(1, whole):.1%}", "")
    ]
    below = 0
    for k, count in enumerate(counts):
        below += count
        between = (
            "0"
            if k == 0
            else f"{1 << k - 1:,}"
            if k == 1
            else f"{1 << k - 1:,} to {(1 << k) - 1:,}"
        )
        rows.append(
            (between, f"{count:,}", f"{count / max(1, whole):.1%}", f"{below / max(1, whole):.1%}")
        )
    head = ["other blocks between two accesses", ">accesses", ">part", ">so far"]
    return table.render(head, rows)


def simulated(results: Sequence[Result], blocks: dict[str, int | None]) -> str:
    """Misses by policy, a table for each source and size of memory.

    Args:
        blocks: bytes of a block by the result's name; None for what has no bytes.
    """
    out = []
    for result in results:
        block = blocks[result.name]
        out.append(f"{result.name}: {result.accesses:,} accesses to {result.blocks:,} blocks")
        sizes = list(dict.fromkeys(row.size for row in result.rows))
        for size in sizes:
            rows = [row for row in result.rows if row.size == size]
            own = next((row.faults.misses for row in rows if row.policy == "uswap"), None)
            memory = "" if block is None else f" ({format_size(size * block)})"
            out += [
                "",
                f"memory of {size:,} blocks{memory}",
                table.render(
                    ["policy", "sees", ">misses", ">of accesses", ">to uswap", ">soft faults"],
                    [
                        (
                            row.policy,
                            "all" if POLICIES[row.policy].sees_hits else "faults",
                            f"{row.faults.misses:,}",
                            f"{row.faults.misses / max(1, result.accesses):.1%}",
                            f"{row.faults.misses / own:.3f}" if own else None,
                            f"{row.faults.soft:,}" if row.faults.soft else None,
                        )
                        for row in rows
                    ],
                ),
            ]
        out.append("")
    return table.page(out).rstrip()
