# SPDX-License-Identifier: MIT
"""What `uswap fsck` prints."""

from __future__ import annotations

from ..fsck import Report, Segment
from ..sizes import format_size
from . import table

__all__ = ["render"]

COLUMNS = [
    ">segment",
    ">sequence",
    ">used",
    ">objects",
    ">live",
    ">dead",
    ">bad",
    ">live bytes",
    "state",
]


def render(report: Report, *, most: int | None = None) -> str:
    """Return the report as text.

    Args:
        most: segments that are shown; None is all. Bad ones are shown always.
    """
    shown = [
        segment
        for number, segment in enumerate(report.segments)
        if most is None or number < most or segment.state == "bad"
    ]
    current, stale = report.current, len(report.segments) - len(report.current)
    lines = [
        f"{report.path}: {format_size(report.size)} in segments of {format_size(report.segment_size)}",
        "",
        table.render(COLUMNS, [*map(_row, shown), _sum(report)]),
    ]
    lines += [f"segment {one.id}: {one.problem}" for one in shown if one.problem]
    if left := len(report.segments) - len(shown):
        lines.append(f"{left} more segments are good or stale; --all shows them")
    lines += [
        "",
        f"{len(current)} segments written, {stale} stale (of a former run), {report.unwritten} never written",
        f"{report.bad} bad" if report.bad else "all objects are readable",
    ]
    return table.page(lines)


def _row(segment: Segment) -> list[str | None]:
    if segment.state == "stale":
        return [str(segment.id), *[None] * 7, "stale"]
    return [
        str(segment.id),
        str(segment.sequence),
        format_size(segment.used),
        f"{segment.objects:,}",
        f"{segment.live:,}",
        f"{segment.dead:,}",
        f"{segment.bad:,}",
        format_size(segment.live_bytes),
        segment.state,
    ]


def _sum(report: Report) -> list[str | None]:
    return [
        "all",
        None,
        format_size(report.total("used")),
        f"{report.total('objects'):,}",
        f"{report.total('live'):,}",
        f"{report.total('dead'):,}",
        f"{report.bad:,}",
        format_size(report.total("live_bytes")),
        "bad" if report.bad else "ok",
    ]
