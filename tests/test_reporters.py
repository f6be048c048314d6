# SPDX-License-Identifier: MIT
"""Reporters: data in, text or a picture out."""

from __future__ import annotations

import io
import json
import random
import re
import sys
from pathlib import Path

import pytest

from uswap.bench import latency, sweep, throughput, tiers
from uswap.bench.objects import Moved
from uswap.health import Finding, Status
from uswap.reporters import bench, checks, plot, plot_tiers, table
from uswap.reporters import json as json_reporter
from uswap.reporters import tiers as tiers_reporter
from uswap.reporters.progress import ProgressLine

from results import MACHINE


def latency_result(*, block: int = 4096, read: float = 11e3) -> latency.Result:
    """A result with made-up samples: the floor is 7 us, the codec 2 us."""
    config = latency.Latency(block=block, rounds=3)
    rng = random.Random(1)
    middles = {"kernel": 1.5e3, "floor": 7e3, "codec": 2e3, "read": read}
    series = {}
    for threads in (1, 2):
        for kind in latency.KINDS:
            if threads == 2 and kind in ("floor", "codec"):
                continue
            one = latency.Series(kind, threads)
            for _ in range(3):
                middle = middles.get(kind, 9e3) * (threads if kind != "kernel" else 1)
                samples = [round(middle * rng.lognormvariate(0, 0.1)) for _ in range(999)]
                samples += [round(middle * 40)] * 12
                one.rounds.append(sorted(samples))
            series[kind, threads] = one
    return latency.Result(config, MACHINE, 2.08, "device", series, 0.02)


def throughput_result(rate: float) -> throughput.Result:
    """A result with one block size."""
    config = throughput.Throughput(blocks=[65536], size=64 << 20, rounds=2)
    row = throughput.Row(65536, "int64 below 42,000", 2.0)
    row.rates = {"evicted": [rate, rate * 1.1], "over limit": [5e8, 6e8], "codec": [3e9, 3.1e9]}
    return throughput.Result(config, MACHINE, [2e10, 3e10], [], [row], None)


def tiers_result(
    *, stored: float = 90e3, faults: int = 999, with_sweep: bool = False
) -> tiers.Result:
    """A result with made-up samples: a plain read is 80 us, a plain write 1 GB/s."""
    config = tiers.Tiers("/somewhere", rounds=2)
    about = {"io": "io_uring", "swapfile": "unnamed in /somewhere, 1 GiB, O_DIRECT"}
    result = tiers.Result(config, MACHINE, "int64 below 17,000", 2.0, about)
    rng = random.Random(1)
    kinds = {"plain": 80e3, "stored": stored, "busy": 1.5 * stored, "filling": 3 * stored}
    for kind, middle in kinds.items():
        series = result.series[kind] = latency.Series(kind, 1)
        for _ in range(2):
            samples = [round(middle * rng.lognormvariate(0, 0.1)) for _ in range(999)]
            series.rounds.append(sorted([*samples, *[round(middle * 40)] * 12]))
        if kind != "plain":
            result.touched[kind], result.stored_faults[kind] = [999, 999], [faults, faults]
    result.plain_read, result.stored_read = [12300.0, 12310.0], [12305.0, 12315.0]
    result.raw = 256 << 20
    result.busy_rates = {"busy": [2e8, 3e8], "filling": [1e8, 1e8]}
    result.end_to_end, result.end_to_end_raw = [1e8, 2e8], [2e8, 4e8]
    half = result.raw // 2
    result.moved = {
        "plain": [Moved(half, half, half // 10)] * 2,
        "packed": [Moved(half, half * 10 // 9, half)] * 2,
        "unpacked": [Moved(2 * half, half * 2, 3 * half)] * 2,
    }
    result.others = 0.01
    if with_sweep:
        result.sweep = sweep.Sweep(16384)
        result.sweep.segments = [
            sweep.Segment(size, [9e8, 1e9], [3e5, 4e5], [5e5, 6e5], [90, 99])
            for size in sweep.SEGMENTS
        ]
        result.sweep.layouts = [
            sweep.Layout(block, layout, 64 << 20, 33 << 20, 32 << 20, 1 << 19, 12e3, [9e4, 9.1e4])
            for block in sweep.BLOCKS
            for layout in sweep.LAYOUTS
        ]
        result.sweep.engines = {"pread": [8e4, 9e4], "threads": [9e4, 1e5]}
    return result


# ---- text


def test_table() -> None:
    """Columns are as wide as their widest cell, numbers stand to the right, nothing is a dash."""
    text = table.render(["name", ">n"], [["a", "1"], ["longer", "1,000"], ["b", None]])
    assert text.splitlines() == ["name        n", "a           1", "longer  1,000", "b           -"]


WIDE = [["first", "1,234 (1,200 to 1,300)", "5,678 (5,600 to 5,700)", "a few words of prose"]] * 3


@pytest.mark.parametrize("width", [40, 48, 60, 79, 80, 120])
@pytest.mark.parametrize("prose", ["~prose", "prose"])
def test_table_that_is_too_wide(width: int, prose: str) -> None:
    """It fits, and has all that it had: every word is there, in groups of columns or on further lines."""
    columns = ["name", ">one", ">another", prose]
    text = table.render(columns, WIDE, width=width)
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    for word in ("one", "another", "prose"):
        assert words.count(word) >= 1
    for cell in ("1,234 (1,200 to 1,300)", "5,678 (5,600 to 5,700)"):
        assert words.count(cell) == 3
    assert [text.count(word) for word in ("few", "words")] == [3, 3]
    if width == 120:
        assert len(text.splitlines()) == 4


def test_table_in_groups() -> None:
    """Each group of columns has the first ones, as many as tell rows apart."""
    rows = [["4 KiB", "bytes", "1" * 20, "2" * 20], ["4 KiB", "pages", "3" * 20, "4" * 20]]
    text = table.render(["block", "layout", ">one", ">two"], rows, keys=2, width=40)
    first, second = text.split("\n\n")
    assert [line.split() for line in first.splitlines()] == [
        ["block", "layout", "one"],
        ["4", "KiB", "bytes", "1" * 20],
        ["4", "KiB", "pages", "3" * 20],
    ]
    assert [line.split()[-1] for line in second.splitlines()] == ["two", "2" * 20, "4" * 20]


def test_table_with_prose() -> None:
    """Prose is wrapped in its column where there is room, else it stands below its row, whole words each."""
    rows = [["a" * 10, "some words that are rather long for the column"]]
    wrapped = table.render(["name", "~what"], rows, width=40).splitlines()
    assert wrapped == [
        "name        what",
        "aaaaaaaaaa  some words that are rather",
        "            long for the column",
    ]
    rows = [["a" * 10, "b" * 20, "some words that are rather long"]]
    below = table.render(["name", "other", "~what"], rows, width=42).splitlines()
    assert below == [
        "name        other",
        "    what",
        "aaaaaaaaaa  bbbbbbbbbbbbbbbbbbbb",
        "    some words that are rather long",
    ]


def test_cell_wider_than_the_terminal() -> None:
    """A path that has no room in a line takes several, and no character of it is lost."""
    path = "/a/path/" + "x" * 100
    text = table.render(["option", "value"], [["swapfile", path], ["io", "auto"]], width=40)
    assert max(map(len, text.splitlines())) <= 40
    cells = [line[10:].strip() for line in text.splitlines()]
    assert "".join(cells) == f"value{path}auto"


def test_page() -> None:
    """Paragraphs are wrapped between words, tables left alone."""
    text = table.page(["word " * 12, "", "a" * 50 + "\n" + "b"], width=40)
    assert text.splitlines() == [
        "word " * 7 + "word",
        "  word word word word",
        "",
        "a" * 50,
        "b",
    ]


def test_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS says it; where nothing does it is 80."""
    monkeypatch.setenv("COLUMNS", "132")
    assert table.terminal_width() == 132
    monkeypatch.setenv("COLUMNS", "7")
    assert table.terminal_width() == table.LEAST
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    assert table.terminal_width() == 80


@pytest.mark.parametrize("width", [60, 80, 100])
def test_results_fit(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What benchmarks print is no wider than the terminal, and has the same figures as in a wide one."""
    shown: dict[str, list[str]] = {}
    for columns in (width, 300):
        monkeypatch.setenv("COLUMNS", str(columns))
        for text in (
            bench.latency(latency_result()),
            bench.throughput(throughput_result(1e9)),
            tiers_reporter.tiers(tiers_result(with_sweep=True)),
        ):
            assert max(map(len, text.splitlines())) <= columns
            shown.setdefault(text.split()[0], []).append(text)
    for narrow, wide in shown.values():
        figures = re.findall(r"\d[\d,.%]*", wide)
        assert set(re.findall(r"\d[\d,.%]*", narrow)) == set(figures)


def test_json() -> None:
    """What is rendered can be read back."""
    data = {"a": [1, 2.5, None], "b": "µs"}
    assert json.loads(json_reporter.render(data)) == data


def test_latency_text() -> None:
    """Each kind has a row; the criterion says how near the goal is, and whether it is reached."""
    text = bench.latency(latency_result())
    for name in latency.KINDS.values():
        assert name in text
    assert "AMD" not in text
    assert "Some CPU, 2 CPUs, 8 GiB, Linux 6.18.0" in text
    assert "other processes took 2% of the CPUs' time" in text
    assert ": 1.22 (1.2" in text
    assert text.endswith("reached")
    assert bench.latency(latency_result(read=15e3)).endswith("missed")


def test_criterion_is_for_4_kib() -> None:
    """With other blocks the ratio is shown, but neither reached nor missed."""
    line = bench.criterion_line(latency_result(block=65536))
    assert line.endswith("with 64 KiB blocks")


def test_throughput_text() -> None:
    """Rates are in MB/s with their spread; the goal is said of each block size."""
    text = bench.throughput(throughput_result(1e9))
    assert "1050 (1000 to 1100)" in text
    assert "blocks of 64 KiB: 1050 MB/s, reached" in text
    assert "blocks of 64 KiB: 525 MB/s, missed" in bench.throughput(throughput_result(5e8))


def test_tiers_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are medians with their range; each goal says whether it is reached, and by which ratio."""
    monkeypatch.setenv("COLUMNS", "200")
    text = tiers_reporter.tiers(tiers_result())
    for name in [*tiers.SERIES.values(), *tiers.WAYS.values()]:
        assert name in text
    assert "4 KiB" not in text  # the sweep's
    assert "touched 5,994 blocks that were in the file: 5,994 stored faults" in text
    assert "read for each 12,310 bytes, plain 12,305" in text
    assert "with a decompression to that without: 3.00 (3.00 to 3.00)" in text
    *_, stored, busy, write = text.splitlines()
    assert "at most 1.25: 1.1" in stored
    assert "at most 4: 1.50" in busy
    assert "at least 0.8: 0.90" in write
    assert all(line.endswith("reached") for line in (stored, busy, write))
    text = tiers_reporter.tiers(tiers_result(stored=120e3, faults=998))
    assert text.splitlines()[-3].endswith("missed")
    assert "note: not each touch was a stored fault" in text


def test_tiers_text_with_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segment sizes, layouts and engines have a table each; an engine that is not there has no row."""
    monkeypatch.setenv("COLUMNS", "200")
    text = tiers_reporter.tiers(tiers_result(with_sweep=True))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "256 KiB 950 (900 to 1,000) 350 (300 to 400) 550 (500 to 600)" in rows
    assert "64 KiB in pages 0.516 1.5% 12,000 90.5 (90.0 to 91.0)" in rows
    assert "threads 95.0 (90.0 to 100)" in rows
    assert not any(row.startswith("io_uring") for row in rows)


def test_results_as_json() -> None:
    """Results can be written as JSON; a quantile is the smallest value that covers its part."""
    data = json.loads(json_reporter.render(latency_result().as_dict()))
    assert data["machine"]["cpu"] == "Some CPU"
    assert {one["kind"] for one in data["series"]} == set(latency.KINDS)
    assert json.loads(json_reporter.render(throughput_result(1e9).as_dict()))["goal"] == 8e8
    data = json.loads(json_reporter.render(tiers_result(with_sweep=True).as_dict()))
    assert data["write_out"]["cpu_ratio"]["median"] == 3
    assert data["sweep"]["layouts"][0]["layout"] == "bytes"
    one = latency.Series("read", 1, [list(range(1, 1001))])
    assert [one.quantile(q).median for q in (0.5, 0.99, 0.999, 1.0)] == [500, 990, 999, 1000]


def test_checks() -> None:
    """A shortfall is shown with its cost and its commands, which are never broken over lines."""
    command = "sudo something " + "very-long " * 20
    findings = [
        Finding("kernel", "Linux 6.18"),
        Finding("thing", "missing", Status.DEGRADED, "It costs.", (command, "# do it by hand")),
    ]
    text = checks.render(findings, "works", width=60)
    assert "ok        kernel  Linux 6.18" in text
    assert "DEGRADED  thing   missing" in text
    assert f"to mend: {command}" in text
    assert "or:      do it by hand" in text
    assert text.endswith("works")


# ---- progress


class Terminal(io.StringIO):
    """Says that it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


def test_progress_on_a_terminal() -> None:
    """A terminal sees the bar, and at the end an empty line."""
    stream = Terminal()
    with ProgressLine(stream) as progress:
        progress("working", 0.5)
    assert "############............]  50% working" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_progress_elsewhere() -> None:
    """A pipe or a file gets nothing."""
    stream = io.StringIO()
    with ProgressLine(stream) as progress:
        progress("working", 0.5)
    assert stream.getvalue() == ""


# ---- pictures


@pytest.mark.parametrize("name", ["plot.png", "plot.svg", "plot.pdf"])
def test_plot(name: str, tmp_path: Path) -> None:
    """The picture is written in the format that the file's name says."""
    pytest.importorskip("matplotlib")
    path = tmp_path / name
    plot.check(path)
    plot.latency(latency_result(), path)
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[path.suffix]
    assert path.read_bytes().startswith(start)


def test_plot_of_one_kind(tmp_path: Path) -> None:
    """Not every series need be there."""
    pytest.importorskip("matplotlib")
    result = latency_result(block=65536)
    result.series = {key: one for key, one in result.series.items() if key == ("empty", 2)}
    plot.latency(result, tmp_path / "plot.svg")
    assert "64 KiB" in plot._title(result)


@pytest.mark.parametrize("with_sweep", [False, True])
def test_plot_of_tiers(with_sweep: bool, tmp_path: Path) -> None:
    """The picture of the swap file's figures is written, with a sweep or without."""
    pytest.importorskip("matplotlib")
    plot_tiers.tiers(tiers_result(with_sweep=with_sweep), tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert ("Layout of objects" in text) == with_sweep


def test_plot_refuses(tmp_path: Path) -> None:
    """A bad name or place is refused before anything is measured, and says what is accepted."""
    with pytest.raises(ValueError, match=r"accepted: \.png, \.svg, \.pdf"):
        plot.check(tmp_path / "plot.bmp")
    with pytest.raises(
        ValueError, match="missing does not exist; accepted: a file in a directory that can be"
    ):
        plot.check(tmp_path / "missing" / "plot.png")


def test_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib the error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'uswap\[plot\]'"):
        plot.check(tmp_path / "plot.png")
