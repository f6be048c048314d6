# SPDX-License-Identifier: MIT
"""The result of `uswap bench peers` as text."""

from __future__ import annotations

from collections.abc import Sequence

from ..bench import peers as _peers
from ..sizes import format_size
from . import table
from .bench import machine_line, noise_line

__all__ = ["GROUPS", "VERDICTS", "figure", "not_on_disk", "note_of", "peers", "ratio_of"]

#: What each group is called.
GROUPS = {
    "pooled": "What is out stays in RAM",
    "disk": "What is out goes to a small pool in RAM, then to a disk",
}
VERDICTS = {True: "reached", False: "missed", None: "not measured"}


def peers(result: _peers.Result) -> str:
    """What `uswap bench peers` prints: a table for each case, then a line for each goal."""
    lines: list[str] = []
    for case in result.cases():
        lines += [*_heading(result, case), "", _table(result, case), ""]
    lines += [
        "Medians of the rounds (lowest to highest); a ratio is the median of the ratios of the rounds.",
        machine_line(result.machine),
        *noise_line(result.others),
    ]
    lines += [f"{name}: {text}" for name, text in result.about.items()]
    lines += [f"{name} left out: {text}" for name, text in result.skipped.items()]
    lines += [
        f"note: {run}: ended by the kernel, out of memory, before it had measured {missing}"
        for run, missing in result.killed.items()
    ]
    verdicts = result.verdicts()
    if verdicts:
        several = (
            len({one.column for one in verdicts}) > 1
            or len({(one.data, one.over) for one in verdicts if one.over}) > 1
        )
        rows: list[list[str | None]] = [
            [
                one.text,
                note_of(one) if several else "",
                ratio_of(one, one.ratio.median),
                f"{ratio_of(one, one.ratio.low)} to {ratio_of(one, one.ratio.high)}",
                f"{'>=' if one.least else '<='} {one.bound:g}",
                VERDICTS[one.reached],
            ]
            for one in verdicts
            if one.ratio is not None
        ]
        lines += ["", table.render(["~goal", "", ">ratio", "(rounds)", ">goal", ""], rows)]
    return table.page(lines)


def not_on_disk(result: _peers.Result, case: tuple[str, str, int]) -> list[str]:
    """The peers whose data were to be on a disk, and were not."""
    return [peer for peer in result.columns(case[0]) if not result.is_on_disk(case, peer)]


def note_of(verdict: _peers.Verdict) -> str:
    """Which data, overcommitment and uswap it is about."""
    parts = [verdict.data]
    if verdict.over is not None:
        parts.append(f"{verdict.over}x")
    if verdict.column != "uswap":
        parts.append(verdict.column.removeprefix("uswap "))
    return ", ".join(parts)


def ratio_of(verdict: _peers.Verdict, ratio: float) -> str:
    """A ratio in as many digits as its goal asks for."""
    return f"{ratio:.3f}" if verdict.key.startswith("fits ") else figure(ratio)


def figure(value: float) -> str:
    """A number in three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _heading(result: _peers.Result, case: tuple[str, str, int]) -> list[str]:
    group, data, over = case
    config = result.config
    size, limit = config.size_of(group), config.limit_of(group, over)
    lines = [
        f"{GROUPS[group]}: {data}, {format_size(size)}, of which {format_size(limit)} may be resident "
        f"({over}x overcommitted)"
    ]
    parts = [
        f"{peer} {part.median:.0%}"
        for peer in result.columns(group)
        if (part := result.on_disk(case, peer)) is not None
    ]
    if parts:
        lines.append(
            f"on the disk, of what was out when the data were filled in: {', '.join(parts)}"
        )
    absent = not_on_disk(result, case)
    if absent:
        lines.append(
            f"note: nothing of {', '.join(absent)} was on the disk: these figures are of RAM, and no goal is "
            "judged by them; a larger --disk-size takes more than the pool holds"
        )
    return lines


def _table(result: _peers.Result, case: tuple[str, str, int]) -> str:
    """One table, or where that is too wide one of medians, one of ratios, and one of lowest and highest."""
    group = case[0]
    columns = result.columns(group)
    ratios = [
        (one, other)
        for one in result.uswaps(group)
        for other in columns
        if not other.startswith("uswap")
    ]
    peers = ["", *(f">{peer}" for peer in columns)]
    pairs = [f">{one}/{other}" for one, other in ratios]
    labels, medians, ranges, quotients = [], [], [], []
    for key in (*_peers.ROWS, "density"):
        spreads = [result.spread(case, peer, key) for peer in columns]
        if any(spreads):
            row = _peers.ROWS.get(key)
            labels.append(f"{row.label}, {row.unit}" if row else "data bytes for a byte of RAM")
            scale = row.scale if row else 1.0
            medians.append([one and figure(one.median * scale) for one in spreads])
            ranges.append(
                [
                    one and f"{figure(one.low * scale)} to {figure(one.high * scale)}"
                    for one in spreads
                ]
            )
            quotients.append(_ratios(result, case, key, ratios))
    several = result.config.rounds > 1
    rows = []
    for label, middle, span, quotient in zip(labels, medians, ranges, quotients, strict=True):
        cells = [
            f"{one} ({two})" if several and one else one
            for one, two in zip(middle, span, strict=True)
        ]
        rows.append([label, *cells, *quotient])
    whole = table.render([*peers, *pairs], rows, width=1 << 20)
    if table.fits(whole):
        return whole

    def part(head: list[str], cells: Sequence[Sequence[str | None]]) -> str:
        lines = [[label, *line] for label, line in zip(labels, cells, strict=True)]
        return table.render(head, lines)

    parts = [part(["medians", *peers[1:]], medians)]
    if pairs:
        parts.append(part(["ratios", *pairs], quotients))
    if several:
        parts.append(part(["lowest to highest", *peers[1:]], ranges))
    return "\n\n".join(parts)


def _ratios(
    result: _peers.Result,
    case: tuple[str, str, int],
    key: str,
    ratios: list[tuple[str, str]],
) -> list[str | None]:
    found = (result.ratio(case, (one, key), (other, key)) for one, other in ratios)
    return [
        None
        if ratio is None
        else f"{ratio.median:.2g}"
        if ratio.median < 0.1
        else figure(ratio.median)
        for ratio in found
    ]
