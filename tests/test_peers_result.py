# SPDX-License-Identifier: MIT
"""`uswap bench peers`: its columns, what comes of the figures of a run, and what is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from uswap.bench import common, peers, programs
from uswap.reporters import peers as reporter
from uswap.reporters import plot_peers

from results import made_up

MIB = 1 << 20


def test_columns() -> None:
    """Each block size and way of faults is a column; the defaults' comes first, and passes nothing on."""

    def columns(**more: Any) -> list[tuple[str, dict[str, Any]]]:
        found = peers.columns_of(peers.Peers(**more))
        return [(one.name, one.options()) for one in found]

    assert columns() == [("uswap", {})]
    assert columns(blocks=[8192], faults=["inline"]) == [
        ("uswap", {"block": 8192, "faults": "inline"})
    ]
    assert columns(blocks=[4096, 0]) == [("uswap", {}), ("uswap 4 KiB", {"block": 4096})]
    assert columns(faults=["message", ""], blocks=[4096, 0]) == [
        ("uswap", {}),
        ("uswap message 4 KiB", {"block": 4096, "faults": "message"}),
        ("uswap message", {"faults": "message"}),
        ("uswap 4 KiB", {"block": 4096}),
    ]
    config = peers.Peers(faults=["inline", ""], disk_size=8 * MIB)
    cases = peers.cases_of(config, "pooled", "int64", 4, {})
    assert [case.column for case in cases] == ["uswap", "uswap inline", "zram", "naive", "plain"]
    assert "faults" not in cases[0].options()
    assert cases[1].options()["faults"] == "inline"
    assert made_up(faults=["inline", ""]).uswaps("pooled") == ["uswap", "uswap inline"]


def test_figures_of_threads() -> None:
    """A mean is of each thread's time; two threads by one is of their rates in the same run."""
    work = {
        "random": {"count": 100, "bytes": 1, "ns": 1000, "threads": 1},
        "random2": {"count": 300, "bytes": 1, "ns": 1500, "threads": 2},
    }
    run = peers.Run("pooled", "int64", 4, "zram", 0, work, None, None, {})
    assert peers.ROWS["random mean"].of(run) == 10
    assert peers.ROWS["random2 mean"].of(run) == 10
    assert peers.ROWS["random scaling"].of(run) == pytest.approx(2)
    del work["random"]
    assert peers.ROWS["random scaling"].of(run) is None


def test_programs_together() -> None:
    """Their geometric mean is over those that both have run, and the worst is named."""
    result = made_up(names=["uswap", "zram"])
    for run in result.runs:
        for number, name in enumerate(programs.PROGRAMS):
            times = {"uswap": 1 if number else 4, "zram": 2}[run.peer]
            run.work[name] = {"count": 1, "bytes": 100, "ns": 1000 * times}
        del run.work["exchange"]
    found = {one.key: one for one in result.verdicts()}
    mean, worst = found["programs mean"], found["programs worst"]
    assert mean.ratio is not None
    assert worst.ratio is not None
    measured = len(programs.PROGRAMS) - 1
    assert mean.ratio.median == pytest.approx((2 / 2 ** (measured - 1)) ** (1 / measured))
    assert worst.ratio.median == pytest.approx(2)
    assert (mean.reached, worst.reached) == (False, False)
    assert f"over {measured} of {len(programs.PROGRAMS)}" in mean.text
    assert "worst program, gather" in worst.text
    assert "worst program, gather" in " ".join(reporter.peers(result).split())


def test_ratios() -> None:
    """Ratios are of the same round; a round that one of the two lacks counts for none."""
    result = made_up(names=["uswap", "zram"])
    case = ("pooled", "int64", 4)
    for run in result.runs:
        run.work["read"] = {"count": 1, "bytes": 1, "ns": 100 * (run.round + 1)}
        if run.peer == "zram":
            run.work["read"]["ns"] *= 10 * (run.round + 1)
    ratio = result.ratio(case, ("uswap", "read"), ("zram", "read"))
    assert ratio == common.Spread(pytest.approx(20), pytest.approx(10), pytest.approx(30))
    zram = [run for run in result.runs if run.peer == "zram"]
    result.runs.remove(zram[0])
    del zram[1].work["read"]
    ratio = result.ratio(case, ("uswap", "read"), ("zram", "read"))
    assert ratio == common.Spread(*[pytest.approx(30)] * 3)
    assert result.ratio(case, ("uswap", "read"), ("plain", "read")) is None


@pytest.mark.parametrize(("speed", "reached"), [(4.0, False), (30.0, True)])
def test_verdicts(speed: float, reached: bool) -> None:
    """A goal is reached when its ratio is on the right side of the bound."""
    verdicts = {one.key: one for one in made_up(speed=speed).verdicts()}
    assert len(verdicts) == len(peers.GOALS) + len(peers.FIT_GOALS) + len(peers.PROGRAM_GOALS)
    assert verdicts["read"].reached is reached
    assert verdicts["p99"].reached is reached
    assert verdicts["p50"].reached is True
    assert verdicts["memmap read"].ratio is not None
    assert verdicts["memmap read"].ratio.median == pytest.approx(2 * speed, rel=0.1)
    assert verdicts["threads reads"].reached is False
    assert verdicts["density"].reached is True
    assert (verdicts["fits touch"].reached, verdicts["fits random"].reached) == (False, True)
    assert verdicts["fits read"].reached is False
    assert "density" not in {one.key for one in made_up(data=["text"]).verdicts()}


@pytest.mark.parametrize("rounds", [1, 3])
def test_text_fits(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal of 80 columns nothing is wider, and all figures are there as in a wide one."""
    result = made_up(rounds=rounds, blocks=[4096, 65536], over=[4, 16], data=["int64", "text"])
    monkeypatch.setenv("COLUMNS", "400")
    wide = reporter.peers(result)
    monkeypatch.setenv("COLUMNS", "80")
    text = reporter.peers(result)
    assert max(map(len, text.splitlines())) <= 80
    assert set(re.findall(r"\d[\d,.%]*", text)) == set(re.findall(r"\d[\d,.%]*", wide))
    for peer in peers.PEERS:
        assert text.count(peer) >= wide.count(f" {peer}")
    for goal in ("two threads by one: uswap", "sequential read-modify-write: uswap/zram"):
        assert goal in " ".join(text.split()) or goal.split(": ")[0] in " ".join(text.split())


def test_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a workload, a column a peer with its spread, ratios; a line a goal."""
    monkeypatch.setenv("COLUMNS", "200")
    text = reporter.peers(made_up())
    lines = text.splitlines()
    assert lines[0].startswith("What is out stays in RAM: int64, 256 MiB, of which 64 MiB may be")
    read = next(line for line in lines if line.startswith("sequential read, MB/s"))
    assert read.count(" to ") == 4  # uswap, zram, naive, plain
    assert read.split()[3].replace(",", "").isdigit()
    assert "on the disk, of what was out when the data were filled in: uswap 40%, zswap 40%" in text
    assert "uswap/zram" in text
    assert "uswap/memmap" in text
    assert "other processes took 1% of the CPUs' time" in text
    goals = {line.split("  ")[0]: line for line in lines}
    assert goals["sequential read: uswap/zram"].endswith("missed")
    assert ">= 6" in goals["sequential read: uswap/zram"]
    assert goals["data that fit, random reads: time uswap/plain"].endswith("reached")
    assert " 1.012 " in goals["data that fit, sequential read: time uswap/plain"]
    assert max(map(len, lines)) < 200


def test_nothing_on_the_disk() -> None:
    """Goals about a disk are not judged where nothing was on it; the table says so. Others are."""
    result = made_up(speed=30.0)
    assert sum(one.reached is True for one in result.verdicts() if one.key.startswith("z")) == 5
    for run in result.runs:
        if (run.group, run.peer) == ("disk", "zswap"):
            run.out = 0.004
    verdicts = {one.key: one.reached for one in result.verdicts()}
    assert {verdicts[f"zswap {row}"] for row in ("random", "zipf", "read", "rmw")} == {None}
    assert verdicts["memmap read"] is True
    assert verdicts["read"] is True
    text = " ".join(reporter.peers(result).split())
    assert "note: nothing of zswap was on the disk: these figures are of RAM" in text
    for run in result.runs:
        if (run.group, run.peer) == ("disk", "uswap"):
            run.out = 0.0
    verdicts = {one.key: one.reached for one in result.verdicts()}
    assert verdicts["memmap read"] is None
    assert "nothing of uswap, zswap was on the disk" in " ".join(reporter.peers(result).split())
    assert "was on the disk:" not in reporter.peers(made_up())


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (["uswap", "zram", "plain"], "uswap beside the kernel's own swap"),
        (["uswap", "zswap"], "uswap beside the kernel's own swap"),
        (["uswap", "naive"], "uswap beside a naive pager"),
        (["uswap", "naive", "plain"], "uswap beside a naive pager and memory without a limit"),
        (["uswap", "memmap"], "uswap beside np.memmap"),
        (["uswap"], "uswap by itself"),
        (["zram", "naive"], "What pages beside the kernel's own swap"),
    ],
)
def test_title(names: list[str], title: str) -> None:
    """The title of a plot names what was measured, the kernel's swap only where it was."""
    assert plot_peers._what(made_up(names=names)) == title


def test_plot_of_nothing_on_the_disk(tmp_path: Path) -> None:
    """The picture says that nothing was on the disk, and counts no goal about it."""
    pytest.importorskip("matplotlib")
    result = made_up(names=["uswap", "zswap"], speed=30.0)
    plot_peers.peers(result, tmp_path / "disk.svg")
    text = (tmp_path / "disk.svg").read_text(encoding="utf-8")
    assert "was on the disk" not in text
    for run in result.runs:
        run.out = 0.0
    plot_peers.peers(result, tmp_path / "none.svg")
    text = (tmp_path / "none.svg").read_text(encoding="utf-8")
    assert "nothing of uswap, zswap was on the disk: no goal is judged" in text
    (title,) = re.findall("own swap: (.*) goals reached", text)
    assert title == "1 of 3"  # of what fits into the limit


def test_text_of_one_round() -> None:
    """Where there is one round there is no spread; what was left out is said."""
    result = made_up(rounds=1, names=["uswap", "zram"], blocks=[4096, 16384])
    result.skipped = {"zswap": "zswap needs root"}
    text = reporter.peers(result)
    assert "zswap left out: zswap needs root" in text
    assert " to " not in text.split("\n\n")[1]
    assert "int64, 4x, 16 KiB" in text


def test_json_of_a_result() -> None:
    """All of it can be written as JSON."""
    answer = json.loads(json.dumps(made_up(over=[4, 16]).as_dict()))
    assert [(one["group"], one["over"]) for one in answer["table"]] == [
        ("pooled", 4),
        ("disk", 4),
        ("pooled", 16),
        ("disk", 16),
    ]
    assert len(answer["runs"]) == 2 * 3 * 8
    assert answer["table"][0]["rows"]["read"]["ratios"]["uswap/zram"]["median"] > 3


@pytest.mark.parametrize("blocks", [(), (4096, 65536)])
def test_plot_tells_rows_apart(blocks: Sequence[int], tmp_path: Path) -> None:
    """Where a row's name comes twice, each says of what it is."""
    pytest.importorskip("matplotlib")
    plot_peers.peers(made_up(names=["uswap", "zswap"], blocks=blocks), tmp_path / "peers.svg")
    text = (tmp_path / "peers.svg").read_text(encoding="utf-8")
    assert text.count("first touch, time") == max(1, len(blocks))
    assert text.count("int64, 64 KiB") == 3 * (len(blocks) > 1)


@pytest.mark.parametrize("kind", ["svg", "png"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rounds": 1, "names": ["uswap", "plain"]},
        {"names": ["zram", "naive"]},
        {"data": ["int64", "text"], "over": [4, 16], "blocks": [4096, 16384]},
    ],
)
def test_plot(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    """The picture is drawn, whatever was measured."""
    pytest.importorskip("matplotlib")
    result = made_up(**more)
    path = tmp_path / f"peers.{kind}"
    plot_peers.peers(result, path)
    assert path.stat().st_size > 10_000
    start = b"<?xml" if kind == "svg" else b"\x89PNG"
    assert path.read_bytes().startswith(start)
