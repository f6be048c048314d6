# SPDX-License-Identifier: MIT
"""What two runs come to: the figures that are written and shown, and whether the results are equal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from flights_memory import Result, Run


def compare(ours: Result, theirs: Result) -> list[str]:
    """Return the differences between two results, a line each; none if they are equal."""
    out = []
    for what in ("digests", "tables"):
        for name in sorted({*ours[what], *theirs[what]}):
            one, other = ours[what].get(name), theirs[what].get(name)
            if one is None or other is None:
                out.append(f"{name}: only in one of the runs")
            elif what == "digests":
                if one != other:
                    out.append(f"array {name!r}: other bytes")
            else:
                for key in sorted({*one, *other}):
                    # As text: it gives a float back exactly, and a NaN equals itself.
                    if repr(one.get(key)) != repr(other.get(key)):
                        out.append(f"{name}, {key}: {one.get(key)} and {other.get(key)}")
    return out


def figures(
    args: argparse.Namespace,
    rows: int,
    limit: int,
    paged: Run,
    unpaged: Run,
    differences: Sequence[str],
) -> Result:
    """What --json writes. Bytes and seconds; latencies in nanoseconds."""
    stats, about = paged.result["stats"], paged.result["about"]
    keys = ("seconds", "cpu_seconds", "phases", "peak_rss")
    ours = {key: paged.result[key] for key in keys}
    theirs = {key: unpaged.result[key] for key in keys}
    ours["peak_arrays"] = stats["peak_resident"]
    ours["peak_pager"] = max((one.pager for one in paged.samples), default=0)
    ours["peak_total"] = max((one.total for one in paged.samples), default=0)
    pool = {key: paged.pool.get(key, 0) for key in ("raw", "pooled", "kept", "allocated")}
    return {
        "equal": not differences,
        "differences": list(differences),
        "rows": rows,
        "size": paged.result["array_bytes"],
        "limit": limit,
        "seed": args.seed,
        "block": about["block"],
        "codec": about["codec"],
        "about": about,
        "paged": ours,
        "unpaged": theirs,
        "ratio": {key: ours[key] / theirs[key] for key in ("seconds", "peak_rss")},
        "pool": {**pool, "ratio": pool["raw"] / pool["pooled"] if pool["pooled"] else 1.0},
        "file": file_figures(paged) if stats["swap"] else None,
        "stats": stats,
        "samples": [asdict(one) for one in paged.samples],
    }


def file_figures(paged: Run) -> Result:
    """What went to the swap file and came from it; the first three are of when it was fullest."""
    stats = paged.result["stats"]
    last = {key: stats[key] for key in ("stored", "stored_raw", "swap_used")}
    most = max(paged.file or last, last, key=lambda one: one["stored"])
    counted = ("written", "rewritten", "padding", "reads", "read_bytes", "write_errors")
    evicted = stats["evicted"]
    return {
        **most,
        **{key: stats[key] for key in (*counted, "read_retries", "swap")},
        "written_per_evicted": stats["written"] / evicted if evicted else 0.0,
        "read_per_evicted": stats["read_bytes"] / evicted if evicted else 0.0,
    }
