# SPDX-License-Identifier: MIT
"""The picture of `uswap bench peers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bench import peers as _peers
from ..bench.common import Spread
from ..bench.subject import NUMBERS
from ..sizes import format_size
from .bench import machine_line
from .peers import GROUPS, figure, not_on_disk, note_of, ratio_of
from .plot import BESIDE, COLOURS, DPI, GRID, INK, PALE, RED, WIDTH, matplotlib

__all__ = ["peers"]

GREEN = "#2e7d4f"
#: Colour and marker of each peer; further block sizes of uswap take further colours.
MARKS = {
    "zram": (COLOURS[1], "D"),
    "zswap": (COLOURS[1], "D"),
    "naive": (COLOURS[3], "s"),
    "memmap": (COLOURS[2], "s"),
    "plain": (BESIDE, "|"),
}
#: What a title calls the others.
PEERS = {"naive": "a naive pager", "memmap": "np.memmap", "plain": "memory without a limit"}
BASES = ("zram", "zswap", "memmap", "naive", "plain")  # what is 1 on the axis: the first there is

# Inches.
HEAD, FOOT = 0.9, 0.62
TITLE, AXIS = 0.72, 0.42  # above and below a panel
ROW = 0.245
LEFT, RIGHT = 2.45, 6.35  # where axes begin and end
COLUMNS = (7.1, 7.8, 8.5)  # right ends of columns of text
GOAL = 8.62  # where the column of goals begins

Case = tuple[str, str, int]


def peers(result: _peers.Result, path: Path) -> None:
    """Draw a result of `uswap bench peers` and write it to `path`.

    A panel for each case: how many times as good as the kernel's swap each peer is, a workload a row, on
    a logarithmic axis; to the right is better, always. Red marks are goals. Last, what uswap is measured
    by on its own: beside plain memory where the data fit, with two threads, on a busy machine.
    """
    Figure = matplotlib("figure").Figure  # noqa: N806 - a class
    cases = [(case, rows) for case in result.cases() if (rows := _rows(result, case))]
    alone = _alone(result)
    panels = [TITLE + ROW * len(rows) + AXIS for _, rows in cases]
    if alone:
        panels.append(TITLE + ROW * len(alone) + AXIS)
    height = HEAD + sum(panels) + FOOT
    page = Figure(figsize=(WIDTH, height), dpi=DPI)
    top = height - HEAD
    for (case, rows), panel in zip(cases, panels, strict=False):
        _draw_case(page, result, case, rows, top)
        top -= panel
    if alone:
        _draw_alone(page, result, alone, top)

    _write(page, 0.15, height - 0.34, _title(result), 13, INK, weight="bold")
    _write(page, 0.15, height - 0.58, _subtitle(result), 9, PALE)
    _write(
        page,
        0.15,
        0.34,
        "Marks: medians of the rounds; thin lines: lowest to highest. Red: goals. Ratios are medians of "
        "the ratios of the rounds.",
        8,
        PALE,
    )
    noise = "" if result.others is None else f"; others took {result.others:.0%} of the CPUs' time"
    _write(page, 0.15, 0.16, machine_line(result.machine) + noise, 8, PALE)
    page.savefig(path, dpi=DPI, facecolor="white")


def _title(result: _peers.Result) -> str:
    title = _what(result)
    verdicts = [one for one in result.verdicts() if one.reached is not None]
    if not verdicts:
        return title
    reached = sum(one.reached is True for one in verdicts)
    return f"{title}: {reached} of {len(verdicts)} goals reached"


def _what(result: _peers.Result) -> str:
    """What was compared: the kernel's swap is named only where it was measured."""
    there = dict.fromkeys(
        peer.split()[0] for case in result.cases() for peer in result.columns(case[0])
    )
    beside = [name for peer, name in PEERS.items() if peer in there]
    if {"zram", "zswap"} & there.keys():
        beside = ["the kernel's own swap"]
    subject = "uswap" if "uswap" in there else "What pages"
    if not beside:
        return f"{subject} by itself"
    text = " and ".join([", ".join(beside[:-1]), beside[-1]] if len(beside) > 1 else beside)
    return f"{subject} beside {text}"


def _subtitle(result: _peers.Result) -> str:
    rounds = result.config.rounds
    parts = [f"{name} {text}" for name, text in result.about.items() if name in ("zram", "zswap")]
    return "; ".join(
        [*parts, f"{rounds} round{'s' if rounds != 1 else ''}, in which the peers take turns"]
    )


# ---- parts of a page


def _write(page: Any, x: float, y: float, text: str, size: float, colour: str, **more: Any) -> None:
    """Text at a place in inches."""
    width, height = page.get_size_inches()
    page.text(x / width, y / height, text, size=size, color=colour, **{"va": "baseline", **more})


def _axes(page: Any, top: float, rows: int, left: float, right: float) -> Any:
    """Logarithmic axes for so many rows; y runs down from 0, a row each, its middle at -0.5, -1.5, ..."""
    width, height = page.get_size_inches()
    deep = rows * ROW
    axes = page.add_axes(
        (LEFT / width, (top - TITLE - deep) / height, (RIGHT - LEFT) / width, deep / height)
    )
    ticker = matplotlib("ticker")
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(-rows, 0)
    ticks = _ticks(left, right)
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ticker.FixedFormatter([_times(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_locator(ticker.NullLocator())
    axes.grid(axis="x", color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8, colors=PALE, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    for row in range(0, rows, 2):  # every other row is shaded, across the page
        axes.axhspan(-row - 1, -row, color="#f5f5f5", zorder=-1, linewidth=0)
    axes.axvline(1, color=INK, linewidth=1, zorder=2)
    return axes


def _ticks(left: float, right: float) -> list[float]:
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [
            step * 10.0**power
            for power in range(-6, 7)
            for step in steps
            if left <= step * 10.0**power <= right
        ]
        if len(ticks) <= 8:
            break
    return ticks


def _times(ratio: float) -> str:
    return f"{ratio:g}x" if ratio < 1000 else f"{ratio:,.0f}x"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis, with room at both, and 1 well inside."""
    low, high = min(*values, 0.8), max(*values, 1.25)
    room = (high / low) ** 0.05
    return low / room, high * room


def _legend(page: Any, top: float, marks: Sequence[tuple[str, str, str]]) -> None:
    """Name, colour and marker of each, in a line above the axes."""
    width, height = page.get_size_inches()
    lines = matplotlib("lines")
    x = 0.22
    for name, colour, marker in marks:
        page.add_artist(
            lines.Line2D(
                [x / width],
                [(top - TITLE + 0.15) / height],
                marker=marker,
                color=colour,
                markersize=7 if marker != "|" else 9,
                markeredgewidth=2 if marker == "|" else 0,
                linewidth=0,
            )
        )
        _write(page, x + 0.1, top - TITLE + 0.11, name, 8.5, INK)
        x += 0.36 + 0.075 * len(name)


def _mark(peer: str, uswaps: Sequence[str]) -> tuple[str, str]:
    if peer in MARKS:
        return MARKS[peer]
    return (COLOURS[0], "#5fa8dd", "#1b3f63", "#8fc6ee")[uswaps.index(peer) % 4], "o"


# ---- a case


def _rows(result: _peers.Result, case: Case) -> list[str]:
    """The figures that two or more peers have."""
    columns = result.columns(case[0])
    return [
        key
        for key in (*_peers.ROWS, "density")
        if sum(result.spread(case, peer, key) is not None for peer in columns) > 1
    ]


def _base(result: _peers.Result, case: Case) -> str:
    """The peer that is 1 on the axis."""
    columns = result.columns(case[0])
    return next((peer for peer in BASES if peer in columns), columns[0])


def _better(key: str) -> bool:
    """Is more of it better?"""
    return key == "density" or _peers.ROWS[key].more


def _times_as_good(
    result: _peers.Result, case: Case, key: str, peer: str, base: str
) -> Spread | None:
    """How many times as good as the base a peer is."""
    if peer == base:
        return Spread(1.0, 1.0, 1.0) if result.spread(case, base, key) else None
    if _better(key):
        return result.ratio(case, (peer, key), (base, key))
    return result.ratio(case, (base, key), (peer, key))


def _goals(result: _peers.Result, case: Case, key: str) -> list[_peers.Goal]:
    """Goals of a row: uswap beside another peer, by that figure."""
    columns = result.columns(case[0])
    return [
        goal
        for goal in _peers.GOALS
        if goal.group == case[0]
        and goal.of == ("uswap", key)
        and goal.by[0] != "uswap"
        and goal.by[0] in columns
        and not (goal.numeric and case[1] not in NUMBERS)
    ]


def _draw_case(
    page: Any, result: _peers.Result, case: Case, rows: Sequence[str], top: float
) -> None:
    group, data, over = case
    columns, uswaps, base = result.columns(group), result.uswaps(group), _base(result, case)
    limit = format_size(result.config.limit_of(group, over))
    size = format_size(result.config.size_of(group))
    _write(page, 0.15, top - 0.2, f"{GROUPS[group]}: {data}, {over}x", 10.5, INK, weight="bold")
    _write(
        page,
        0.15,
        top - 0.37,
        f"{size} of data, of which {limit} may be resident. Axis: how many times as good as {base}; to the "
        "right is better",
        8.5,
        PALE,
    )
    if absent := not_on_disk(result, case):
        note = f"nothing of {', '.join(absent)} was on the disk: no goal is judged"
        _write(page, WIDTH - 0.15, top - 0.2, note, 8.5, RED, ha="right")
    spreads = {
        (key, peer): spread
        for key in rows
        for peer in columns
        if (spread := _times_as_good(result, case, key, peer, base)) is not None
    }
    goals = {key: _goal_of(result, case, key, spreads) for key in rows}
    ends = [end for spread in spreads.values() for end in (spread.low, spread.high)]
    ends += [goal[0] for goal in goals.values() if goal is not None]
    axes = _axes(page, top, len(rows), *_limits(ends))
    _legend(page, top, [(peer, *_mark(peer, uswaps)) for peer in columns])
    heads = [uswaps[0] if uswaps else "", base, "ratio"]
    for x, name in zip(COLUMNS, heads, strict=True):
        _write(page, x, top - TITLE + 0.07, name, 8.5, PALE, ha="right")
    if any(goals.values()):
        _write(page, GOAL, top - TITLE + 0.07, "goal", 8.5, PALE)
    for row, key in enumerate(rows):
        y = -row - 0.5
        for peer in reversed(columns):  # uswap last, above the others
            if (key, peer) in spreads:
                _draw_mark(axes, spreads[key, peer], y, *_mark(peer, uswaps), bar=peer in uswaps)
        goal = goals[key]
        if goal is not None:
            axes.plot([goal[0]] * 2, [y - 0.45, y + 0.45], color=RED, linewidth=2, zorder=6)
        at = top - TITLE - ROW * (row + 0.5) - 0.045
        _write(page, LEFT - 0.1, at, _label(key), 9, INK, ha="right")
        _draw_figures(page, result, case, key, at, base)
        if goal is not None:
            colour = PALE if goal[2] is None else GREEN if goal[2] else RED
            _write(page, GOAL, at, goal[1], 8.5, colour, weight="bold")


def _draw_mark(axes: Any, spread: Spread, y: float, colour: str, marker: str, *, bar: bool) -> None:
    if bar:
        left, right = sorted((1.0, spread.median))
        axes.fill_betweenx([y - 0.22, y + 0.22], left, right, color=colour, alpha=0.3, linewidth=0)
    axes.plot([spread.low, spread.high], [y, y], color=colour, linewidth=1.1, zorder=3)
    axes.plot(
        [spread.median],
        [y],
        marker=marker,
        color=colour,
        markersize=10 if marker == "|" else 7 if marker == "o" else 5.5,
        markeredgewidth=2 if marker == "|" else 0,
        zorder=5 if bar else 4,
    )


def _draw_figures(
    page: Any, result: _peers.Result, case: Case, key: str, at: float, base: str
) -> None:
    """The figures in a row: uswap's, the base's, and their ratio, as in the table."""
    scale = 1.0 if key == "density" else _peers.ROWS[key].scale
    uswaps = result.uswaps(case[0])
    ratio = None
    if uswaps:
        mine = result.spread(case, uswaps[0], key)
        if mine is not None:
            _write(
                page, COLUMNS[0], at, figure(mine.median * scale), 9, INK, ha="right", weight="bold"
            )
        if base not in uswaps:
            ratio = result.ratio(case, (uswaps[0], key), (base, key))
    if base not in uswaps:
        other = result.spread(case, base, key)
        if other is not None:
            _write(page, COLUMNS[1], at, figure(other.median * scale), 9, INK, ha="right")
    if ratio is not None:
        text = f"{ratio.median:.2g}" if ratio.median < 0.1 else figure(ratio.median)
        _write(page, COLUMNS[2], at, f"{text}x", 9, INK, ha="right")


def _goal_of(
    result: _peers.Result, case: Case, key: str, spreads: dict[tuple[str, str], Spread]
) -> tuple[float, str, bool | None] | None:
    """Where a row's goal is on the axis, in words, and whether the first uswap has reached it.

    None in place of the last: that is not known, since one of the two had nothing on the disk.
    """
    uswaps = result.uswaps(case[0])
    goals = [goal for goal in _goals(result, case, key) if (key, goal.by[0]) in spreads]
    if not goals or not uswaps:
        return None
    at, words = 0.0, []
    reached: bool | None = True
    for goal in goals:
        peer = goal.by[0]
        at = max(at, spreads[key, peer].median * (goal.bound if goal.least else 1 / goal.bound))
        words.append(peer)
        ratio = result.ratio(case, (uswaps[0], key), (peer, key))
        if not (result.is_on_disk(case, uswaps[0]) and result.is_on_disk(case, peer)):
            reached = None
        elif reached is not None:
            reached = reached and ratio is not None and goal.reached(ratio.median)
    sign = "≥" if goals[0].least else "≤"
    more = " each" if len(words) > 1 else ""
    return at, f"{sign} {goals[0].bound:g}x{more}", reached


def _label(key: str) -> str:
    if key == "density":
        return "data bytes for a byte of RAM"
    row = _peers.ROWS[key]
    label = row.label.strip()
    if row.label.startswith(" "):
        label = f"{UNDER[row.work]}, {label}"
    label = label.replace("two busy threads", "busy threads").replace(", 64 KiB apart", "")
    return f"{label}, {row.unit.replace('us', 'µs')}"


# ---- uswap by itself


def _alone(result: _peers.Result) -> list[_peers.Verdict]:
    """Goals that are about no other peer than plain memory."""
    beside = {goal.key for goal in _peers.GOALS if goal.by[0] != "uswap"}
    found = [one for one in result.verdicts() if one.key not in beside and one.ratio is not None]
    return sorted(found, key=lambda one: list(SHORT).index(one.key))


#: What a row's label stands under, where it is indented.
UNDER = {
    "random": "random reads",
    "random2": "two threads' reads",
    "write2": "two threads' writes",
    "loaded": "reads beside busy threads",
}
SHORT = {
    "loaded": "p99 of a read, busy / idle",
    "threads reads": "reads/s, two threads / one",
    "threads writes": "writes/s, two threads / one",
    "programs mean": "programs, time / zram's, mean",
    "programs worst": "worst program, time / zram's",
    "fits touch": "first touch, time",
    "fits read": "data fit, sequential read, time",
    "fits random": "data fit, random reads, time",
}


def _draw_alone(
    page: Any, result: _peers.Result, verdicts: Sequence[_peers.Verdict], top: float
) -> None:
    # Else a row's name says which it is.
    several = len({one.key for one in verdicts}) < len(verdicts)
    _write(
        page, 0.15, top - 0.2, "uswap by itself, and beside plain memory", 10.5, INK, weight="bold"
    )
    _write(
        page,
        0.15,
        top - 0.37,
        "What fits into the limit: time by that of plain memory. Threads: by one thread. Red: the goal, "
        "at most or at least",
        8.5,
        PALE,
    )
    ends = [end for one in verdicts if one.ratio for end in (*one.ratio, one.bound)]
    axes = _axes(page, top, len(verdicts), *_limits(ends))
    for x, name in ((COLUMNS[2], "ratio"),):
        _write(page, x, top - TITLE + 0.07, name, 8.5, PALE, ha="right")
    _write(page, GOAL, top - TITLE + 0.07, "goal", 8.5, PALE)
    for row, one in enumerate(verdicts):
        assert one.ratio is not None
        y = -row - 0.5
        _draw_mark(axes, one.ratio, y, COLOURS[0], "o", bar=True)
        axes.plot([one.bound] * 2, [y - 0.45, y + 0.45], color=RED, linewidth=2, zorder=6)
        at = top - TITLE - ROW * (row + 0.5) - 0.045
        _write(page, LEFT - 0.1, at, SHORT[one.key], 9, INK, ha="right")
        if several:
            _write(page, COLUMNS[1], at, note_of(one), 8, PALE, ha="right")
        _write(
            page,
            COLUMNS[2],
            at,
            f"{ratio_of(one, one.ratio.median)}x",
            9,
            INK,
            ha="right",
            weight="bold",
        )
        sign = "≥" if one.least else "≤"
        colour = GREEN if one.reached else RED
        _write(page, GOAL, at, f"{sign} {one.bound:g}x", 8.5, colour, weight="bold")
