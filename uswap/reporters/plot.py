# SPDX-License-Identifier: MIT
"""Pictures, drawn with matplotlib (``pip install 'uswap[plot]'``)."""

from __future__ import annotations

import bisect
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bench.latency import GOAL, KINDS, Result, Series
from ..paths import why_no_directory
from ..sizes import format_size
from .bench import machine_line

__all__ = [
    "BESIDE",
    "COLOURS",
    "DPI",
    "GRID",
    "INK",
    "PALE",
    "RED",
    "WIDTH",
    "check",
    "draw_frame",
    "histogram",
    "latency",
    "matplotlib",
    "microseconds",
]

FORMATS = (".png", ".svg", ".pdf")
DPI = 160

WIDTH = 9.6  # inches

INK, PALE, GRID = "#222222", "#6b6b6b", "#dddddd"
RED = "#b03a3a"  # goals
BESIDE = "#9a9a9a"  # what is not uswap
COLOURS = ("#2f6fa7", "#d17a22", "#5b8c3a", "#8a5a9e")  # by number of threads

BINS = 48  # of a histogram, for each factor of 10
ROW, GAP = 0.33, 0.42  # inches: a row, and the heading of a group of rows
HEAD, FOOT = 0.92, 0.86  # inches
COLUMNS = ((1.085, "p50", 0.5), (1.215, "p99", 0.99), (1.355, "p99.9", 0.999))  # x, right end


def check(path: Path) -> None:
    """Look whether a plot could be written there.

    Raises:
        ValueError: the file's name or place will not do.
        ImportError: matplotlib is missing; says what to install.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--plot {path}: unknown kind of file; accepted: {', '.join(FORMATS)}")
    parent = path.absolute().parent
    if (why := why_no_directory(str(parent))) is not None:
        raise ValueError(
            f"--plot {path}: {parent} {why}; accepted: a file in a directory that can be written to"
        )
    matplotlib("figure")


def matplotlib(module: str) -> Any:
    """Give a module of matplotlib, which is an extra."""
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError:
        raise ImportError("--plot needs matplotlib: pip install 'uswap[plot]'") from None


def latency(result: Result, path: Path) -> None:
    """Draw the distribution of each kind of fault, a row each, and write it to `path`.

    Time is on a logarithmic axis. A row's shape is the histogram of all samples, with marks at p50,
    p99 and p99.9; at its right stand the figures. Two lines go through the rows: the kernel's own
    first touch, and the goal.
    """
    Figure = matplotlib("figure").Figure  # noqa: N806 - a class
    groups = [
        [one for one in result.series.values() if one.threads == threads]
        for threads in sorted({threads for _, threads in result.series})
    ]
    merged = {id(one): one.merged() for group in groups for one in group}
    body = ROW * len(merged) + GAP * len(groups) + 0.08
    height = HEAD + body + FOOT
    figure = Figure(figsize=(WIDTH, height), dpi=DPI)
    axes = figure.add_axes(
        (0.21, FOOT / height, 0.56, body / height)
    )  # left, bottom, width, height
    left = min(values[0] for values in merged.values()) / 1.15
    ends: list[float] = [_at(values, 0.999) for values in merged.values()]
    ends += [one.quantile(0.999).median for group in groups for one in group]
    right = max(ends) * 1.15
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(-body, 0)  # inches
    draw_frame(axes, left, right)

    y = 0.0
    for group in groups:
        top = y
        y -= GAP
        _draw_heading(axes, group[0].threads, y, with_columns=top == 0)
        for series in group:
            y -= ROW
            _draw_row(axes, series, merged[id(series)], y)
        _draw_references(axes, result, group[0].threads, top, y)

    def write(inches: float, text: str, size: float, colour: str, **more: Any) -> None:
        figure.text(0.015, inches / height, text, size=size, color=colour, va="baseline", **more)

    write(height - 0.34, _title(result), 13, INK, weight="bold")
    write(height - 0.58, _subtitle(result), 9, PALE)
    write(
        0.34,
        "Shapes: all samples up to p99.9, heights as square roots. "
        "Marks: p50, p99, p99.9 (dot), medians of the rounds. Grey: without uswap.",
        8,
        PALE,
    )
    noise = "" if result.others is None else f"; others took {result.others:.0%} of the CPUs' time"
    write(0.16, machine_line(result.machine) + noise, 8, PALE)
    figure.savefig(path, dpi=DPI, facecolor="white")


def _title(result: Result) -> str:
    block = format_size(result.config.block)
    read, kernel = result.series.get(("read", 1)), result.series.get(("kernel", 1))
    if read is None or kernel is None:
        return f"How long a thread stands still at a fault on a block of {block}"
    return (
        f"A read of a pooled {block} block takes {microseconds(read.quantile(0.5).median)} µs; "
        f"the kernel's own first touch {microseconds(kernel.quantile(0.5).median)} µs"
    )


def _subtitle(result: Result) -> str:
    config = result.config
    return (
        "How long a thread stands still at a page fault, by the kind of the fault, in microseconds "
        f"({_data(result)}; {config.rounds} round{'s' if config.rounds != 1 else ''})"
    )


def _data(result: Result) -> str:
    names = {
        "int64": "int64 below 1000",
        "text": "text",
        "random": "random bytes",
    }
    config = result.config
    return f"{names.get(config.data, config.data)}, {config.codec} ratio {result.ratio:.1f}"


def _beside(axes: Any) -> Any:
    """Coordinates: x as a part of the axes' width, y as the data's."""
    return axes.get_yaxis_transform()


def _at(values: Sequence[int], q: float) -> int:
    return values[min(len(values) - 1, int(q * len(values)))]


def _colour(series: Series) -> str:
    if series.kind in ("kernel", "floor", "codec"):
        return BESIDE
    return COLOURS[(series.threads - 1) % len(COLOURS)]


def _draw_heading(axes: Any, threads: int, y: float, *, with_columns: bool) -> None:
    text = f"{threads} thread{'s at once' if threads > 1 else ''}"
    place: dict[str, Any] = {"transform": _beside(axes), "ha": "right", "va": "baseline"}
    axes.text(-0.025, y + 0.06, text, weight="bold", size=9, color=INK, **place)
    if with_columns:
        for x, name, _ in COLUMNS:
            axes.text(x, y + 0.06, name, size=8.5, color=PALE, **place)


def _draw_row(axes: Any, series: Series, values: Sequence[int], y: float) -> None:
    colour = _colour(series)
    end = _at(values, 0.999)
    x, counts = histogram(values, end)
    full = math.sqrt(max(counts))
    shape = [y + 0.85 * ROW * math.sqrt(count) / full for count in counts]
    axes.fill_between(x, y, shape, step="mid", color=colour, alpha=0.6, linewidth=0, zorder=3)
    p50, p99, p999 = (series.quantile(q).median for _, _, q in COLUMNS)
    axes.plot([values[0], max(end, p999)], [y, y], color=colour, linewidth=0.8, zorder=3)
    for at, up in ((p50, 0.85), (p99, 0.4)):
        axes.plot(
            [at, at], [y, y + up * ROW], color=INK, linewidth=1.3, zorder=4, solid_capstyle="butt"
        )
    axes.plot([p999], [y], marker="o", markersize=3.2, color=INK, linewidth=0, zorder=4)
    place: dict[str, Any] = {"transform": _beside(axes), "ha": "right", "va": "baseline"}
    axes.text(-0.025, y + 0.06, KINDS[series.kind], size=9, color=INK, **place)
    for x_at, name, q in COLUMNS:
        weight = "bold" if name == "p50" else "normal"
        text = microseconds(series.quantile(q).median)
        axes.text(x_at, y + 0.06, text, size=9, weight=weight, color=INK, **place)


def histogram(values: Sequence[int], end: int) -> tuple[list[float], list[float]]:
    """Count up to `end`, in bins of equal width on a logarithmic axis: middles and heights."""
    first = math.floor(math.log10(max(1, values[0])) * BINS) - 1
    last = math.floor(math.log10(max(1, end)) * BINS) + 1
    counts = [0.0] * (last - first + 1)
    for value in values[: bisect.bisect_right(values, end)]:
        counts[math.floor(math.log10(max(1, value)) * BINS) - first] += 1
    return [10 ** ((first + i + 0.5) / BINS) for i in range(len(counts))], counts


def _draw_references(axes: Any, result: Result, threads: int, top: float, bottom: float) -> None:
    """The kernel's own first touch, through every group; the goal, through the rows it is for."""
    lines = []
    if ("kernel", threads) in result.series:
        at = result.series["kernel", threads].quantile(0.5).median
        lines.append((at, "kernel", PALE))
    ratio = result.criterion()
    if ratio is not None and threads == 1 and result.config.block == 4096:
        at = GOAL * sum(result.series[kind, 1].quantile(0.5).median for kind in ("floor", "codec"))
        lines.append((at, f"goal for a pooled read: {microseconds(at)}", RED))
    for at, text, colour in lines:
        axes.plot(
            [at, at], [top - GAP, bottom], color=colour, linewidth=0.9, dashes=(4, 3), zorder=2
        )
        axes.text(
            at,
            top - GAP + 0.06,
            text,
            ha="center",
            va="baseline",
            size=8,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )


def draw_frame(axes: Any, left: float, right: float) -> None:
    """A logarithmic axis of times, in nanoseconds from left to right."""
    ticker = matplotlib("ticker")
    ticks = [
        step * 10**power
        for power in range(2, 10)
        for step in (1, 2, 5)
        if left <= step * 10**power <= right
    ]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if str(tick)[0] == "1"]
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ticker.FixedFormatter([_time(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.yaxis.set_major_locator(ticker.NullLocator())
    axes.grid(axis="x", color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=8.5, colors=PALE, length=0)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def microseconds(ns: float) -> str:
    """Nanoseconds as a number of microseconds."""
    us = ns / 1000
    return f"{us:.1f}" if us < 100 else f"{us:,.0f}"


def _time(ns: int) -> str:
    """A round time for an axis."""
    for unit, factor in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if ns >= factor:
            return f"{ns / factor:g} {unit}"
    return f"{ns / 1000:g} µs"
