# SPDX-License-Identifier: MIT
"""The picture of `uswap bench tiers`."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench import tiers as _tiers
from ..bench.common import Spread
from ..bench.latency import Series
from ..bench.sweep import Sweep
from ..sizes import format_size
from .bench import machine_line
from .plot import (
    BESIDE,
    COLOURS,
    DPI,
    GRID,
    INK,
    PALE,
    RED,
    WIDTH,
    draw_frame,
    histogram,
    matplotlib,
    microseconds,
)
from .tiers import rounds

__all__ = ["tiers"]

BLUE, ORANGE = COLOURS[:2]
KIND_COLOURS = {
    "plain": BESIDE,
    "stored": BLUE,
    "busy": ORANGE,
    "filling": ORANGE,
    "packed": BLUE,
    "unpacked": ORANGE,
}

# Inches.
HEAD, FOOT = 0.88, 0.62
SHAPE = 0.64  # a row of a distribution
PEAK, GOAL = 0.62, 0.85  # parts of it: the highest shape, and a goal's mark
BAR = 0.3  # a row of bars
TITLE, AXIS = 0.5, 0.42  # above and below a panel
LEFT = 2.25  # where panels begin


@dataclass(frozen=True)
class Bar:
    """A row of a panel: a figure with its spread.

    Attributes:
        goal: where it should be, if there is a goal.
        text: what stands at its end.
        group: bars of a group stand together.
    """

    label: str
    value: Spread
    colour: str
    text: str
    goal: float | None = None
    group: int = 0


def tiers(result: _tiers.Result, path: Path) -> None:
    """Draw a result of `uswap bench tiers` and write it to `path`.

    Above: how long a fault takes, a distribution a row. Below: bytes a second to the file, and CPU
    time. At the foot, with --sweep: segment sizes, layouts, engines. Goals are red.
    """
    Figure = matplotlib("figure").Figure  # noqa: N806 - a class
    panels = [TITLE + SHAPE * len(result.series) + AXIS, TITLE + BAR * len(_tiers.WAYS) + AXIS]
    if result.sweep:
        rows = max(len(result.sweep.segments), len(result.sweep.engines))
        panels += [
            TITLE + BAR * rows + AXIS,
            TITLE + BAR * (len(result.sweep.layouts) + 1.5) + AXIS,
        ]
    height = HEAD + sum(panels) + FOOT
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    y = height - HEAD
    _draw_faults(figure, result, y)
    _draw_ways(figure, result, y - panels[0])
    if result.sweep:
        _draw_parts(figure, result.sweep, y - sum(panels[:2]))
        _draw_layouts(figure, result.sweep, y - sum(panels[:3]))

    def write(inches: float, text: str, size: float, colour: str, **more: Any) -> None:
        figure.text(0.015, inches / height, text, size=size, color=colour, va="baseline", **more)

    write(height - 0.34, _title(result), 13, INK, weight="bold")
    write(height - 0.58, _subtitle(result), 9, PALE)
    write(
        0.34,
        "Bars: medians of the rounds; thin lines: lowest to highest. Red: goals. Grey: without uswap.",
        8,
        PALE,
    )
    noise = "" if result.others is None else f"; others took {result.others:.0%} of the CPUs' time"
    write(0.16, machine_line(result.machine) + noise, 8, PALE)
    figure.savefig(path, dpi=DPI, facecolor="white")


def _title(result: _tiers.Result) -> str:
    plain, stored = (result.series[kind].quantile(0.5).median for kind in ("plain", "stored"))
    return (
        f"A read of a {format_size(result.config.block)} block in the swap file takes "
        f"{microseconds(stored)} µs; the disk alone {microseconds(plain)} µs"
    )


def _subtitle(result: _tiers.Result) -> str:
    config = result.config
    return (
        f"{result.data}, {config.codec} ratio {result.ratio:.1f}; O_DIRECT, {result.about['io']}; "
        f"{rounds(config.rounds)}"
    )


# ---- panels


def _axes(figure: Any, left: float, right: float, top: float, height: float) -> Any:
    """Axes at a place in inches; y runs from -height to 0, in inches too."""
    width, whole = figure.get_size_inches()
    axes = figure.add_axes(
        (left / width, (top - height) / whole, (right - left) / width, height / whole)
    )
    axes.set_ylim(-height, 0)
    return axes


def _heading(figure: Any, left: float, top: float, text: str, unit: str) -> None:
    """A panel's title and what its axis measures, above it."""
    width, whole = figure.get_size_inches()
    place = {"va": "baseline", "ha": "left"}
    figure.text(left / width, (top - 0.2) / whole, text, size=10, weight="bold", color=INK, **place)
    figure.text(left / width, (top - 0.37) / whole, unit, size=8.5, color=PALE, **place)


def _draw_faults(figure: Any, result: _tiers.Result, top: float) -> None:
    series = list(result.series.values())
    _heading(
        figure, 0.15, top, "A fault", "time on a logarithmic axis; shapes: all samples to p99.9"
    )
    axes = _axes(figure, LEFT, 7.2, top - TITLE, SHAPE * len(series))
    merged = {one.kind: one.merged() for one in series}
    busy_goal = _tiers.GOAL_BUSY * result.series["stored"].quantile(0.99).median
    ends = [max(_at(values, 0.999), busy_goal) for values in merged.values()]
    left, right = min(values[0] for values in merged.values()) / 1.15, max(ends) * 1.15
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    draw_frame(axes, left, right)
    goals = {
        "stored": (0.5, _tiers.GOAL_STORED * result.series["plain"].quantile(0.5).median),
        "busy": (0.99, busy_goal),
    }
    for row, one in enumerate(series):
        y = -SHAPE * (row + 1)
        _draw_shape(axes, one, merged[one.kind], y)
        if one.kind in goals:
            q, at = goals[one.kind]
            _draw_goal(axes, at, y, f"goal for p{q * 100:g}: {microseconds(at)}")
        _label(axes, _tiers.SERIES[one.kind], y + 0.12)
        for x, q in ((1.15, 0.5), (1.30, 0.9), (1.45, 0.99)):
            place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "baseline"}
            text = microseconds(one.quantile(q).median)
            weight = "bold" if q == 0.5 else "normal"
            axes.text(x, y + 0.12, text, size=9, weight=weight, color=INK, **place)
            if row == 0:
                name = f"p{q * 100:g}{', µs' if q == 0.5 else ''}"
                axes.text(x, 0.08, name, size=8.5, color=PALE, **place)


def _draw_shape(axes: Any, series: Series, values: Sequence[int], y: float) -> None:
    """A histogram on a logarithmic axis, heights as square roots; marks at p50 and p99."""
    end = _at(values, 0.999)
    x, counts = histogram(values[: bisect.bisect_right(values, end)], end)
    full = math.sqrt(max(counts))
    shape = [y + PEAK * SHAPE * math.sqrt(count) / full for count in counts]
    colour = KIND_COLOURS[series.kind]
    axes.fill_between(x, y, shape, step="mid", color=colour, alpha=0.6, linewidth=0, zorder=3)
    axes.plot([values[0], end], [y, y], color=colour, linewidth=0.8, zorder=3)
    for q, up in ((0.5, PEAK), (0.99, 0.55 * PEAK)):
        at = series.quantile(q).median
        axes.plot([at, at], [y, y + up * SHAPE], color=INK, linewidth=1.3, zorder=4)
        axes.text(at * 1.03, y + up * SHAPE, f"p{q * 100:g}", size=7, color=INK, va="top", zorder=5)


def _draw_goal(axes: Any, at: float, y: float, text: str) -> None:
    axes.plot([at, at], [y, y + GOAL * SHAPE], color=RED, linewidth=1.1, dashes=(3, 2), zorder=5)
    left, right = axes.get_xlim()
    to_right = math.log(at / left) < 0.7 * math.log(right / left)
    axes.text(
        at * (1.03 if to_right else 0.97),
        y + GOAL * SHAPE,
        text,
        size=8,
        color=RED,
        va="center",
        ha="left" if to_right else "right",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        zorder=6,
    )


def _at(values: Sequence[int], q: float) -> int:
    return values[min(len(values) - 1, int(q * len(values)))]


def _label(axes: Any, text: str, y: float) -> None:
    axes.text(
        -0.02,
        y,
        text,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="baseline",
        size=9,
        color=INK,
    )


def _draw_bars(figure: Any, left: float, right: float, top: float, bars: Sequence[Bar]) -> Any:
    """Horizontal bars from zero, a row each, and half a row between groups."""
    gaps = bars[-1].group * 0.5
    axes = _axes(figure, left, right, top - TITLE, BAR * (len(bars) + gaps))
    ends = [max(bar.value.high, bar.goal or 0) for bar in bars]
    axes.set_xlim(0, max(ends) * 1.33)  # room for the text
    for row, bar in enumerate(bars):
        y = -BAR * (row + 0.5 + bar.group * 0.5)
        axes.barh(y, bar.value.median, height=0.62 * BAR, color=bar.colour, alpha=0.75, zorder=3)
        axes.plot([bar.value.low, bar.value.high], [y, y], color=INK, linewidth=1, zorder=4)
        end = bar.value.high
        if bar.goal is not None:
            across = [y - 0.46 * BAR, y + 0.46 * BAR]
            axes.plot([bar.goal] * 2, across, color=RED, linewidth=2, zorder=5)
            end = max(end, bar.goal)
        axes.annotate(
            bar.text,
            (end, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=INK,
        )
        _label(axes, bar.label, y - 0.045)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="x", labelsize=8, colors=PALE, length=0)
    axes.set_yticks([])
    axes.grid(axis="x", color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    return axes


def _scaled(values: Spread, factor: float) -> Spread:
    return Spread(*(value * factor for value in values))


def _draw_ways(figure: Any, result: _tiers.Result, top: float) -> None:
    goal = _tiers.GOAL_WRITE * result.rates("plain").median / 1e6
    rates, times = [], []
    for way, name in _tiers.WAYS.items():
        rate, cpu = _scaled(result.rates(way), 1e-6), result.cpu(way)
        wanted = goal if way == "packed" else None
        text = f"{rate.median:,.0f}" + (f" (goal {goal:,.0f})" if wanted else "")
        rates.append(Bar(name, rate, KIND_COLOURS[way], text, wanted))
        more = f" ({result.cpu_ratio().median:.1f} times)" if way == "unpacked" else ""
        times.append(Bar("", cpu, KIND_COLOURS[way], f"{cpu.median:.2f}{more}"))
    _heading(figure, 0.15, top, "From the pool to the file", "")
    _heading(figure, LEFT, top, "", "MB/s written")
    _draw_bars(figure, LEFT, 6.0, top, rates)
    _heading(figure, 6.4, top, "", "CPU seconds for each GB of blocks")
    _draw_bars(figure, 6.4, WIDTH - 0.3, top, times)


def _draw_parts(figure: Any, sweep: Sweep, top: float) -> None:
    _heading(figure, 0.15, top, "Segment size", "")
    rates, reads = [], []
    for row in sweep.segments:
        rate, read = _scaled(Spread.of(row.rates), 1e-6), _scaled(Spread.of(row.read_p50), 1e-6)
        rates.append(Bar(format_size(row.segment), rate, BLUE, f"{rate.median:,.0f}"))
        reads.append(Bar("", read, BLUE, f"{read.median:.2g}"))
    _heading(figure, LEFT, top, "", "MB/s written")
    _draw_bars(figure, LEFT, 4.15, top, rates)
    _heading(figure, 4.5, top, "", "ms: a read meanwhile, p50")
    _draw_bars(figure, 4.5, 6.4, top, reads)
    engines = [
        Bar(name, us, BESIDE if name == "pread" else BLUE, microseconds(us.median * 1e3))
        for name, us in ((name, _scaled(sweep.engine(name), 1e-3)) for name in sweep.engines)
    ]
    _heading(figure, 7.3, top, "Engine", "µs: a read, p50")
    _draw_bars(figure, 7.3, WIDTH - 0.3, top, engines)


def _draw_layouts(figure: Any, sweep: Sweep, top: float) -> None:
    _heading(figure, 0.15, top, "Layout of objects", "")
    blocks = sorted({row.block for row in sweep.layouts})
    written, reads = [], []
    for row in sweep.layouts:
        group, colour = blocks.index(row.block), BLUE if row.layout == "bytes" else ORANGE
        part, us = row.written / row.raw, _scaled(Spread.of(row.read_p50), 1e-3)
        name = (
            f"{format_size(row.block)}, {'to the byte' if row.layout == 'bytes' else '4 KiB pages'}"
        )
        written.append(Bar(name, Spread(part, part, part), colour, f"{part:.2f}", group=group))
        reads.append(Bar("", us, colour, microseconds(us.median * 1e3), group=group))
    _heading(figure, LEFT, top, "", "bytes written for each byte evicted")
    _draw_bars(figure, LEFT, 6.0, top, written)
    _heading(figure, 6.4, top, "", "µs: a read of what has to be read, p50")
    _draw_bars(figure, 6.4, WIDTH - 0.3, top, reads)
