# SPDX-License-Identifier: MIT
"""What flights.py shows: memory over time, the closing tables, and what the data say.

It is given the figures and measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flights_memory import Result, Run
from flights_screen import Look, duration, size


def plot(run: Run, limit: int, unpaged_peak: int, look: Look) -> list[str]:
    """Memory over time: areas one above the other, and the unpaged run's peak as a line.

    The limit is a whole number of rows, so that it falls between two of them.
    """
    top = max([unpaged_peak, *(one.total for one in run.samples)])
    limit_rows = max(1, round(14 * limit / top))
    unit = limit / limit_rows
    line_row = math.floor(unpaged_peak / unit)
    margin = 9
    width = look.width - margin - 2
    end = max(run.samples[-1].at, 1e-9)
    columns: list[tuple[float, float, float]] = []
    last = run.samples[0]
    for x in range(width):
        here = [one for one in run.samples if int(one.at / end * (width - 1)) == x]
        last = max(here, key=lambda one: one.total, default=last)  # peaks are what it is about
        arrays = min(last.resident, last.process)
        columns.append((arrays / unit, last.process / unit, last.total / unit))
    labels = {line_row: size(unpaged_peak), limit_rows - 1: size(limit)}
    lines = []
    for row in reversed(range(max(math.ceil(top / unit), line_row + 1))):
        cells = [_cell(row, bounds, look) for bounds in columns]
        if row == line_row:
            dash = look.style(look.dash, 33)
            cells = [dash if cell == " " else cell for cell in cells]
        lines.append(f"{labels.get(row, ''):>{margin}} {look.tick}{''.join(cells)}")
    lines.append(f"{'0':>{margin}} {look.corner}{look.rule * width}")
    axis = [" "] * width
    free = 0
    starts = [*run.starts.values(), end]
    for name, start, stop in zip(run.starts, starts, starts[1:], strict=False):
        x, room = int(start / end * (width - 1)), int((stop - start) / end * width)
        if x >= free and len(name) <= room:
            axis[x : x + len(name)] = name
            free = x + len(name) + 1
    lines.append(f"{'':>{margin}}  {''.join(axis)}".rstrip())
    return lines


def _cell(row: int, bounds: Sequence[float], look: Look) -> str:
    """The character for what lies between `row` and `row + 1`, given where each layer ends."""

    def layer_at(height: float) -> int | None:
        return next((i for i, bound in enumerate(bounds) if bound > height), None)

    if not look.colour:
        layer = layer_at(row + 0.5)
        return " " if layer is None else look.shades[layer]
    low, high = layer_at(row), layer_at(row + 0.999)
    if low is None:
        return " "
    if low == high:
        return look.style(look.shades[0], look.colours[low])
    eighths = min(7, round((bounds[low] - row) * 8))
    if not eighths:
        return " " if high is None else look.style(look.shades[0], look.colours[high])
    behind = "" if high is None else f";{look.colours[high] + 10}"
    return f"\x1b[{look.colours[low]}{behind}m{chr(0x2580 + eighths)}\x1b[0m"


def report(found: Mapping[str, Any], paged: Run, unpaged: Run, look: Look) -> list[str]:
    """The plot and the closing tables."""
    stats, limit = found["stats"], found["limit"]
    lines = ["", "Memory of the paged run over time", ""]
    lines += plot(paged, limit, found["unpaged"]["peak_rss"], look)
    lines += ["", "  " + "  ".join(look.legend()), ""]

    def table(widths: Sequence[int], rows: Sequence[Sequence[str]]) -> None:
        for number, row in enumerate(rows):
            first, *others = row
            text = f"{first:<{widths[0]}}"
            text += "".join(f"{one:>{w}}" for one, w in zip(others, widths[1:], strict=True))
            lines.append(text.rstrip())
            if not number:
                lines.append(look.style(look.rule * sum(widths), 90))
        lines.append("")

    def ratio(one: float, other: float) -> str:
        return f"{one / other:.2f}" if other else ""

    ours, theirs = found["paged"], found["unpaged"]
    rows = [("", "paged", "unpaged", "ratio")]
    rows += [
        (f"  {phase}", f"{one:.2f} s", f"{other:.2f} s", ratio(one, other))
        for phase, one in ours["phases"].items()
        for other in [theirs["phases"][phase]]
    ]
    one, other = ours["seconds"], theirs["seconds"]
    rows.append(("time", f"{one:.1f} s", f"{other:.1f} s", ratio(one, other)))
    all_of_them = theirs["peak_rss"]
    for what, one, other in (
        ("peak resident, the process", ours["peak_rss"], all_of_them),
        ("  of it the arrays", ours["peak_arrays"], found["size"]),
        ("  with its pager and the pool", ours["peak_total"], all_of_them),
    ):
        rows.append((what, size(one), size(other), ratio(one, other)))
    if found["file"]:
        rows.append(("peak resident, the pager by itself", size(ours["peak_pager"]), "", ""))
        rows.append(("  of it the pool", size(found["pool"]["allocated"]), "", ""))
    table((36, 15, 15, 10), rows)
    if found["file"]:
        lost = {phase: one - theirs["phases"][phase] for phase, one in ours["phases"].items()}
        if lost["gather"] > 0.5 * sum(lost.values()):
            lines.append(
                f"{100 * lost['gather'] / sum(lost.values()):.0f} % of the time lost went to gather: "
                "rows from all over a column, one\nread of the disk after the other.\n"
            )

    pool = found["pool"]
    lines.append(
        f"pool when fullest: {size(pool['raw'])} in {size(pool['pooled'])} ({pool['ratio']:.1f} : 1"
        f" with {found['codec']}), and {size(pool['kept'])}\n"
        f"of copies of clean blocks; with what is lost between them {size(pool['allocated'])}"
    )
    if stats["refused_noroom"] or stats["over_limit"]:
        lines.append("It was too small: what found no room stayed in RAM, over the limit (--pool).")
    lines.append("")
    if found["file"]:
        table((46, 12, 18), file_rows(found))
        lines.append(
            f"swap file: {found['about']['swapfile'].partition(' (')[0]}, by {found['about']['io']}"
        )
        if found["file"]["write_errors"] or found["file"]["read_retries"]:
            lines.append(
                f"It failed: {found['file']['write_errors']:,} writes, and "
                f"{found['file']['read_retries']:,} reads had to be tried again."
            )
        lines.append("")
    rows = [("faults by kind", "number", "p50", "p99")]
    for kind, number in stats["faults"].items():
        if number:
            at = stats["latency"][kind]
            what = f"{kind:<9} {FAULTS.get(kind, '')}"
            rows.append((what, f"{number:,}", duration(at["p50"]), duration(at["p99"])))
    table((46, 10, 10, 10), rows)
    if theirs["cpu_seconds"] < 0.85 * theirs["seconds"]:
        lines.append(
            f"The machine was busy: the unpaged run had {theirs['cpu_seconds']:.1f} s of CPU in "
            f"{theirs['seconds']:.1f} s.\nDo not trust the times.\n"
        )
    return lines


def file_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The table of what went to the swap file and came from it."""
    file, stats = found["file"], found["stats"]

    def share(part: float) -> str:
        return f"{100 * part / found['size']:.0f} % of the data"

    rows = [
        ("the swap file", "bytes", ""),
        ("blocks in it when it was fullest", size(file["stored_raw"]), share(file["stored_raw"])),
        ("  the same as it is stored, compressed", size(file["stored"]), share(file["stored"])),
        ("  room that its segments take", size(file["swap_used"]), share(file["swap_used"])),
        ("evicted from RAM, in all", size(stats["evicted"]), f"{stats['evicted_blocks']:,} blocks"),
        ("  of it clean, at no cost", "", f"{stats['evicted_clean_blocks']:,} blocks"),
        ("  of it dirty, compressed", "", f"{stats['evicted_dirty_blocks']:,} blocks"),
        ("written to the file", size(file["written"]), f"{stats['written_objects']:,} blocks"),
    ]
    if file["rewritten"]:
        rows.append(("  of it copied by compaction", size(file["rewritten"]), ""))
    rows += [
        ("read from the file", size(file["read_bytes"]), f"{file['reads']:,} reads"),
        ("written for each byte evicted", f"{file['written_per_evicted']:.3f}", ""),
        ("read for each byte evicted", f"{file['read_per_evicted']:.3f}", ""),
    ]
    return rows


FAULTS = {
    "empty": "first touch",
    "filled": "one repeated word",
    "outbox": "on its way out",
    "pooled": "decompressed",
    "stored": "read from the swap file",
    "protected": "first write to a clean block",
    "present": "was there already",
    "waited": "for room or another's work",
}


def findings(result: Result) -> list[str]:
    """What the data say, in a few words."""
    carriers = result["tables"]["mean arr_delay by carrier"]
    hours = result["tables"]["mean dep_delay by hour"]
    routes = result["tables"]["late arr_delay by route"]
    latest, earliest = max(carriers, key=carriers.get), min(carriers, key=carriers.get)
    hour, route = max(hours, key=hours.get), max(routes, key=routes.get)
    dest, carrier, month = route.split()
    return [
        f"latest on average {latest} ({carriers[latest]:+.1f} min), earliest {earliest} "
        f"({carriers[earliest]:+.1f}); worst hour {hour}:00 ({hours[hour]:+.1f});",
        f"one in ten of {carrier}'s flights to {dest} in month {month} came {routes[route]:.0f} min "
        "late or more",
    ]
