# SPDX-License-Identifier: MIT
"""Benchmark results as text."""

from __future__ import annotations

from ..bench import latency as _latency
from ..bench import overwrite as _overwrite
from ..bench import throughput as _throughput
from ..bench.common import Machine, Spread
from ..sizes import format_size
from . import table

__all__ = ["criterion_line", "latency", "machine_line", "overwrite", "throughput"]


def machine_line(machine: Machine) -> str:
    """The machine in one line."""
    return (
        f"{machine.cpu}, {machine.cpus} CPU{'s' if machine.cpus != 1 else ''}, "
        f"{format_size(machine.memory)}, Linux {machine.kernel}, "
        f"Python {machine.python}, uswap {machine.uswap}"
    )


def noise_line(others: float | None) -> list[str]:
    """A line that says how busy the machine was with other things; none when nobody can tell."""
    if others is None:
        return []
    warning = ": expect better figures on an idle machine" if others > 0.1 else ""
    return [f"other processes took {others:.0%} of the CPUs' time meanwhile{warning}"]


def latency(result: _latency.Result) -> str:
    """What `uswap bench latency` prints."""
    config = result.config
    names = list(_latency.QUANTILES)
    columns = ["", ">threads", ">samples", ">p50", "(rounds)", *(f">{name}" for name in names[1:])]
    rows = []
    for (kind, threads), series in result.series.items():
        p50 = series.quantile(0.5)
        cells: list[str | None] = [_latency.KINDS[kind], str(threads), f"{series.count:,}"]
        cells += [_us(p50.median), f"{_us(p50.low)} to {_us(p50.high)}"]
        cells += [_us(series.quantile(_latency.QUANTILES[name]).median) for name in names[1:]]
        rows.append(cells)
    lines = [
        f"How long a thread stands at a fault, in microseconds; blocks of "
        f"{format_size(config.block)}, {config.data} ({_codec(config)}, ratio {result.ratio:.2f}), "
        f"median of {_rounds(config.rounds)}",
        "",
        table.render(columns, rows, keys=2),
        "",
        machine_line(result.machine),
        *noise_line(result.others),
    ]
    if result.uffd == "user-mode":
        lines.append("the userfaultfd is unprivileged (user-mode); `uswap doctor` says more")
    for (kind, threads), series in result.series.items():
        if series.seen and min(series.seen) < 0.98:
            lines.append(
                f"note: {_latency.KINDS[kind]}, {threads} thread(s): only {min(series.seen):.0%} of "
                "the touches were faults of that kind"
            )
    return table.page([*lines, criterion_line(result)])


def criterion_line(result: _latency.Result) -> str:
    """The goal and how near it is."""
    ratio = result.criterion()
    goal = f"goal: pooled read at most {_latency.GOAL} times floor + decompression (p50, 1 thread, 4 KiB)"
    if ratio is None:
        return f"{goal}; not measured"
    if result.config.block != 4096:
        verdict = f"with {format_size(result.config.block)} blocks"
    else:
        verdict = "reached" if ratio.median <= _latency.GOAL else "missed"
    return f"{goal}: {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}), {verdict}"


def _us(ns: float) -> str:
    us = ns / 1000
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"


def _codec(config: _latency.Latency | _throughput.Throughput) -> str:
    return config.codec if config.filter == "none" else f"{config.codec} {config.filter}"


def throughput(result: _throughput.Result) -> str:
    """What `uswap bench throughput` prints."""
    config = result.config
    cases = [case for case in _throughput.CASES if any(case in row.rates for row in result.rows)]
    columns = [
        "block",
        "data",
        ">ratio",
        *(f">{case}" for case in cases),
        f">{_codec(config)} alone",
    ]
    rows = []
    for row in result.rows:
        cells: list[str | None] = [format_size(row.block), row.data, f"{row.ratio:.2f}"]
        cells += [_rate(row.spread(case)) for case in [*cases, "codec"]]
        rows.append(cells)
    place = "the pool" if config.directory is None else f"a swap file in {config.directory}"
    plain = _rate_of(Spread.of(result.memory))
    if result.memory_write:
        plain += f", read-modify-write {_rate_of(Spread.of(result.memory_write))}"
    lines = [
        f"Reading {format_size(config.size)} from end to end out of {place}, in MB/s: "
        f"median of {_rounds(config.rounds)} (lowest to highest)",
        "",
        table.render(columns, rows, keys=2),
        "",
        f"plain memory: {plain}",
        f"limit: {format_size(int(config.size * config.part))} where it is over limit",
        machine_line(result.machine),
        *noise_line(result.others),
    ]
    for row in result.rows:
        spread = row.spread("evicted")
        if spread is not None and config.directory is None:
            verdict = "reached" if spread.median >= _throughput.GOAL else "missed"
            lines.append(
                f"goal: {_throughput.GOAL / 1e6:.0f} MB/s or more, evicted; blocks of {format_size(row.block)}: "
                f"{spread.median / 1e6:.0f} MB/s, {verdict}"
            )
    return table.page(lines)


def overwrite(result: _overwrite.Result) -> str:
    """What `uswap bench overwrite` prints."""
    config = result.config
    columns = ["", ">live", ">used", ">amplification", "(samples)", ">greedy", ">copied", ">read"]
    columns += [">padding", ">overwrites/s", "(samples)"]
    rows = []
    for case in result.cases:
        live, used = Spread.of(case.live), Spread.of(case.used)
        over, rates = Spread.of(case.amplification), Spread.of(case.rates)
        theory = "" if case.theory is None else f"{case.theory:.2f}"
        cells: list[str | None] = [f"{case.pattern}, {case.part:.0%}", f"{live.median:.1%}"]
        cells += [f"{used.high:.1%}", f"{case.write_amplification:.2f}"]
        cells += [f"{over.low:.2f} to {over.high:.2f}", theory]
        cells += [f"{case.of_written(name):.0%}" for name in ("rewritten", "cleaned_bytes")]
        cells += [f"{case.of_written('padding'):.1%}", f"{rates.median:,.0f}"]
        cells.append(f"{rates.low:,.0f} to {rates.high:,.0f}")
        rows.append(cells)
    lines = [
        f"Overwriting blocks of {format_size(config.block)} at random; a swap file of "
        f"{format_size(config.swap)} in segments of {format_size(config.segment)}, "
        f"{config.turns * (1 - _overwrite.WARM):g} times its bytes measured after "
        f"{config.turns * _overwrite.WARM:g} unmeasured",
        "",
        table.render(columns, rows),
        "",
        "live: of the file, median; used: of the file, at most; amplification: bytes written by bytes first "
        "written; greedy: what cleaning the segment with the fewest live bytes costs in theory with as much "
        "live; copied, padding: of the bytes written; read: for cleaning, by bytes written",
        machine_line(result.machine),
        *noise_line(result.others),
    ]
    for case in result.cases:
        stays = case.counts["over_limit"] + case.counts["refused_noroom"]
        if stays:
            lines.append(
                f"note: {case.pattern}, {case.part:.0%}: the file or the pool was full {stays:,} times"
            )
    return table.page(lines)


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _rate(spread: Spread | None) -> str | None:
    return None if spread is None else _rate_of(spread)


def _rate_of(spread: Spread) -> str:
    return f"{spread.median / 1e6:.0f} ({spread.low / 1e6:.0f} to {spread.high / 1e6:.0f})"
