# SPDX-License-Identifier: MIT
"""Results of `uswap bench tiers` as text."""

from __future__ import annotations

from ..bench import tiers as _tiers
from ..bench.common import Spread
from ..bench.sweep import Sweep
from ..sizes import format_size
from . import table
from .bench import machine_line, noise_line

__all__ = ["tiers"]


def tiers(result: _tiers.Result) -> str:
    """What `uswap bench tiers` prints."""
    config = result.config
    lines = [
        f"The swap file: blocks of {format_size(config.block)}, {result.data} ({config.codec}, ratio "
        f"{result.ratio:.2f}), {result.about['io']}; median of {rounds(config.rounds)} "
        "(lowest to highest)",
        "",
        _faults(result),
        "",
        _ways(result),
        "",
        *_also(result),
        *(_sweep(result.sweep) if result.sweep else []),
        "",
        machine_line(result.machine),
        f"swap file: {result.about['swapfile']}",
        *noise_line(result.others),
        *_counts(result),
        goal("stored fault to plain read, p50,", result.stored_ratio(), _tiers.GOAL_STORED),
        goal(
            "stored fault during write-out to the same on an idle disk, p99,",
            result.busy_ratio(),
            _tiers.GOAL_BUSY,
        ),
        goal(
            "write-out to plain sequential write, bytes a second,",
            result.write_ratio(),
            _tiers.GOAL_WRITE,
            least=True,
        ),
    ]
    return table.page(lines)


def _faults(result: _tiers.Result) -> str:
    columns = ["microseconds", ">samples", ">p50", ">p90", ">p99"]
    rows = [
        [
            _tiers.SERIES[kind],
            f"{series.count:,}",
            *(_us(series.quantile(q)) for q in (0.5, 0.9, 0.99)),
        ]
        for kind, series in result.series.items()
    ]
    return table.render(columns, rows)


def _ways(result: _tiers.Result) -> str:
    columns = ["from pool to file", ">MB written", ">MB/s", ">CPU s per GB of blocks"]
    rows = []
    for way, name in _tiers.WAYS.items():
        written = result.moved[way][0].written / 1e6
        rows.append(
            [
                name,
                f"{written:,.0f}",
                spread(result.rates(way), 1e-6, "{:,.0f}"),
                spread(result.cpu(way), 1, "{:.2f}"),
            ]
        )
    return table.render(columns, rows)


def _also(result: _tiers.Result) -> list[str]:
    rate = spread(Spread.of(result.end_to_end), 1e-6, "{:,.0f}")
    raw = spread(Spread.of(result.end_to_end_raw), 1e-6, "{:,.0f}")
    return [
        f"written during the faults that were timed beside it: "
        f"{spread(Spread.of(result.busy_rates['busy']), 1e-6, '{:,.0f}')} MB/s; beside a thread that "
        f"fills memory: {spread(Spread.of(result.busy_rates['filling']), 1e-6, '{:,.0f}')} MB/s",
        f"a region evicted through the pool to the file: {rate} MB/s written, {raw} MB/s of the region",
        f"CPU time with a decompression to that without: {spread(result.cpu_ratio(), 1, '{:.2f}')}",
    ]


def _sweep(sweep: Sweep) -> list[str]:
    segments = [
        [
            format_size(row.segment),
            spread(Spread.of(row.rates), 1e-6, "{:,.0f}"),
            _us(Spread.of(row.read_p50)),
            _us(Spread.of(row.read_p90)),
        ]
        for row in sweep.segments
    ]
    layouts = [
        [
            format_size(row.block),
            "to the byte" if row.layout == "bytes" else "in pages",
            f"{row.written / row.raw:.3f}",
            f"{row.padding / row.written:.1%}",
            f"{row.span:,.0f}",
            _us(Spread.of(row.read_p50)),
        ]
        for row in sweep.layouts
    ]
    engines = [[name, _us(sweep.engine(name))] for name in sweep.engines]
    meanwhile = "us, reads meanwhile"
    return [
        "",
        table.render(["segments", ">MB/s written", f">{meanwhile}: p50", ">p90"], segments),
        "",
        table.render(
            [
                "blocks",
                "objects",
                ">written for each byte",
                ">lost",
                ">bytes read",
                ">us, read: p50",
            ],
            layouts,
            keys=2,
        ),
        "",
        table.render(["reads through", ">us, p50"], engines),
    ]


def _counts(result: _tiers.Result) -> list[str]:
    """What was really measured: touches and faults, bytes read for each."""
    touched, faults = (
        sum(sum(counts) for counts in one.values())
        for one in (result.touched, result.stored_faults)
    )
    lines = [
        f"touched {touched:,} blocks that were in the file: {faults:,} stored faults; read for each "
        f"{_mean(result.stored_read):,.0f} bytes, plain {_mean(result.plain_read):,.0f}"
    ]
    if faults != touched:
        lines.append("note: not each touch was a stored fault, so the figures are of a mixture")
    return lines


def goal(what: str, ratio: Spread, limit: float, *, least: bool = False) -> str:
    """A goal, and whether it is reached."""
    reached = ratio.median >= limit if least else ratio.median <= limit
    return (
        f"goal: {what} {'at least' if least else 'at most'} {limit:g}: "
        f"{spread(ratio, 1, '{:.2f}')}, {'reached' if reached else 'missed'}"
    )


def spread(values: Spread, factor: float, form: str) -> str:
    """A median with the lowest and the highest."""
    median, low, high = (form.format(value * factor) for value in values)
    return f"{median} ({low} to {high})"


def rounds(count: int) -> str:
    """How many, in words."""
    return "1 round" if count == 1 else f"{count} rounds"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _us(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.low)} to {_number(spread.high)})"


def _number(ns: float) -> str:
    us = ns / 1000
    return f"{us:.1f}" if us < 100 else f"{us:,.0f}"
