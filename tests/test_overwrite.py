# SPDX-License-Identifier: MIT
"""A swap file that is overwritten at random: within its size, at a bounded price, and right when full."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from typing import Any

import pytest

import uswap
from uswap.bench import overwrite
from uswap.commands import main

from child import run_child
from workload import KIB, MIB, data

RESERVE = 6  # segments: kept free, being filled or cleaned


def run_main(*argv: str) -> int:
    """Run a command; in a child, since it touches paged memory."""
    sys.exit(main(list(argv)))


@pytest.mark.parametrize(
    ("utilisation", "amplification"),
    [(0.0, 1.0), (0.5, 1.255), (0.7, 1.88), (0.8, 2.69), (0.9, 5.18), (1.0, float("inf"))],
)
def test_greedy(utilisation: float, amplification: float) -> None:
    """The theory's figures are those that are published."""
    assert overwrite.greedy(utilisation) == pytest.approx(amplification, rel=0.005)


def test_wrong_bytes_are_described() -> None:
    """What is wrong of a block is said: an older content, zeros, or a few bytes."""
    content = overwrite._Content(4 * KIB, random.Random(1))
    first, last = content.fresh(7), [content.fresh(7) for _ in range(3)][-1]
    for found, what in (
        (first, "as overwritten 3 times ago"),
        (bytes(4 * KIB), "the whole is zeros"),
        (last[:100] + bytes([last[100] ^ 1]) + last[101:], "1 bytes differ, from 100 to 100"),
        (last, "right when read again"),
    ):
        assert what in overwrite._differs(7, found, content)


def test_amplification() -> None:
    """Half and four fifths live, uniform and skewed: near the theory's price, and every byte right."""
    argv = ["bench", "overwrite", "--swap=16MiB", "--segment=256KiB", "--turns=3", "--json"]
    result = run_child(run_main, args=[*argv, "--live=0.5,0.8"], timeout=240)
    cases = json.loads(result.stdout)["cases"]
    assert [(c["pattern"], c["part"]) for c in cases] == [
        (pattern, part) for pattern in ("uniform", "zipf") for part in (0.5, 0.8)
    ]
    for case in cases:
        over = case["over_time"]
        live, used = max(over["live"]), max(over["used"])
        assert used <= 1
        assert live > case["part"] * 0.85
        counts = case["counts"]
        assert counts["rewritten"] > 0
        assert counts["written"] > 8 * MIB
        # Those of the few segments that are not in use make the others fuller.
        price = overwrite.greedy(live * 64 / (64 - RESERVE))
        assert 1 <= case["write_amplification"] < 1.4 * price, case
        if case["pattern"] == "uniform":
            assert counts["over_limit"] == counts["refused_noroom"] == 0


def test_text() -> None:
    """The table has a line a case, and says what the columns are."""
    argv = ["bench", "overwrite", "--swap=16MiB", "--segment=256KiB", "--turns=0.5"]
    result = run_child(
        run_main,
        args=[*argv, "--live=0.6", "--pattern=uniform", "--block=4KiB"],
        env={"COLUMNS": "80"},
        timeout=120,
    )
    assert "uniform, 60%" in result.stdout
    assert "amplification: bytes written by bytes first" in " ".join(result.stdout.split())
    for heading in ("live", "used", "amplification", "greedy", "copied", "read", "padding"):
        assert heading in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--live", "0.5,2"], "accepted: a number from 0.05 to 0.98"),
        (["--live", "much"], "accepted: a number"),
        (["--turns", "0"], "accepted: a number from 0.5 to 1000"),
        (["--swap", "1MiB"], "too small"),
        (["--segment", "300KiB"], "not a power of two"),
        (["--pattern", "none"], "invalid choice: 'none'"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad argument is a usage error that names it and says what is accepted."""
    with pytest.raises(SystemExit) as end:
        main(["bench", "overwrite", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes that don't go together are one line."""
    assert main(["bench", "overwrite", "--segment=16MiB", "--swap=64MiB"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].count("uswap bench: ") == 1


@pytest.mark.parametrize("option", ["--dir", "--directory"])
def test_directory(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The directory is called as in the other benchmarks, and by its former name."""
    with pytest.raises(SystemExit) as end:
        main(["bench", "overwrite", option, "/nowhere/at/all"])
    assert end.value.code == 2
    assert "'/nowhere/at/all' does not exist; accepted: a dir" in capsys.readouterr().err


# ---- full


def filled(kind: str, total: int, block: int, options: dict[str, Any]) -> dict[str, int]:
    """What the children of test_full run: more is written than all tiers hold."""
    rng = random.Random(6)
    given = {"limit": 2 * MIB, "pool": MIB, "segment": "256KiB", "swap": "8MiB", "readahead": 0}
    with uswap.Pager(swapfile=tempfile.gettempdir(), **{**given, **options}) as pager:
        region = pager.region(total, block=block)
        view = memoryview(region)
        blocks = total // block
        model = [bytes(block)] * blocks

        def put(k: int, kind: str) -> None:
            model[k] = data(kind, block, rng)
            view[k * block : (k + 1) * block] = model[k]

        def right() -> None:
            for k in range(blocks):
                assert view[k * block : (k + 1) * block] == model[k], k

        for k in range(blocks):
            put(k, kind)
        for _ in range(2 * blocks):
            put(rng.randrange(blocks), kind)
        right()
        pager.check()
        full = pager.stats()
        # Most of it goes, and with it the need; the writer gets going again by itself.
        for k in range(blocks):
            if k % 4:
                put(k, "zero")
        for _ in range(blocks):
            put(rng.randrange(0, blocks, 4), kind)
        end = time.monotonic() + 20
        while pager.stats().resident > pager.limit and time.monotonic() < end:
            put(rng.randrange(0, blocks, 4), kind)
        right()
        region.evict()
        region.check()
        pager.check()
        stats = pager.stats()
        assert stats.lost == 0
        assert stats.resident <= pager.limit
        assert stats.swap_used <= stats.swap
        again = stats.written - full.written
        return {"most": full.peak_resident, "noroom": full.refused_noroom, "again": again}


@pytest.mark.parametrize(
    ("kind", "total", "block"),
    [
        ("random", 24 * MIB, 16 * KIB),
        ("half", 40 * MIB, 16 * KIB),
        ("random", 24 * MIB, 64 * KIB),  # three to a segment, with gaps
        ("random", 20 * MIB, 128 * KIB),  # one
    ],
)
@pytest.mark.parametrize("io", ["uring", "threads"])
def test_full(kind: str, total: int, block: int, io: str) -> None:
    """When file and pool are full, blocks stay resident, over the limit: none is lost, no thread stalls."""
    found = run_child(filled, args=[kind, total, block, {"io": io}], timeout=150)
    assert found.json["noroom"] > 0
    assert found.json["most"] > 3 * MIB
    assert found.json["again"] > 0
    assert found.stderr.count("the swap file is full") == 1


def nearly(block: int, blocks: int) -> dict[str, float]:
    """What the children of test_nearly_full run: as much is live as the file can hold with its gaps."""
    rng = random.Random(7)
    with uswap.Pager(
        limit=2 * MIB,
        pool=MIB,
        segment="256KiB",
        swap="16MiB",
        swapfile=tempfile.gettempdir(),
        readahead=0,
    ) as pager:
        region = pager.region(blocks * block, block=block)
        view = memoryview(region)
        model = [bytes(block)] * blocks
        for turn in range(4):
            for k in range(blocks):
                k = k if turn == 0 else rng.randrange(blocks)
                model[k] = data("random", block, rng)
                view[k * block : (k + 1) * block] = model[k]
        stats = pager.stats()
        for k in range(blocks):
            assert view[k * block : (k + 1) * block] == model[k], k
        pager.check()
        return {"amplification": stats.write_amplification, "noroom": stats.refused_noroom}


@pytest.mark.parametrize(("block", "blocks"), [(64 * KIB, 160), (32 * KIB, 400), (4 * KIB, 3600)])
def test_nearly_full(block: int, blocks: int) -> None:
    """Objects that leave gaps in their segments: the cleaner counts what a segment's own objects hold."""
    found = run_child(nearly, args=[block, blocks], timeout=150).json
    assert found["amplification"] < 10, found


def gaps(seed: int) -> dict[str, int]:
    """What the child of test_cleaning_ends runs: objects of a quarter of a segment, more of them than there is room for."""
    rng = random.Random(seed)
    block, swap = 256 * KIB, 64 * MIB
    source = rng.randbytes(4 * MIB)
    with uswap.Pager(
        limit=4 * MIB,
        pool=4 * MIB,
        segment="1MiB",
        swap=swap,
        block=block,
        swapfile=tempfile.gettempdir(),
        readahead=0,
        shuffle="off",
    ) as pager:
        blocks = int((0.95 * swap + 4 * MIB) / (block * 0.5)) + 16
        view = memoryview(pager.region(blocks * block))
        model = [bytes(block)] * blocks
        for turn in range(blocks + 400):
            k = turn if turn < blocks else rng.randrange(blocks)
            some = rng.choice((block // 4, block // 2, block * 3 // 4, block))
            at = rng.randrange(len(source) - block)
            model[k] = source[at : at + some] + bytes(block - some)
            view[k * block : (k + 1) * block] = model[k]
        for k in range(blocks):
            assert view[k * block : (k + 1) * block] == model[k], k
        stats = pager.stats()
        pager.check()
        return {"lost": stats.lost, "noroom": stats.refused_noroom, "written": stats.written}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_cleaning_ends(seed: int) -> None:
    """Full segments with gaps and hardly a dead byte: cleaning them gains nothing, so no fault waits for it."""
    found = run_child(gaps, args=[seed], timeout=60).json
    assert found["lost"] == 0
    assert found["noroom"] > 0
    assert found["written"] < 1024 * MIB


def larger_than_a_segment() -> None:
    """What the child of test_larger_than_a_segment runs."""
    rng = random.Random(8)
    with uswap.Pager(
        limit=32 * MIB,
        pool=8 * MIB,
        segment="256KiB",
        swap="64MiB",
        swapfile=tempfile.gettempdir(),
    ) as pager:
        large, small = pager.region(4 * MIB, block="1MiB"), pager.region(40 * MIB)
        first, second = data("random", 4 * MIB, rng), data("half", 40 * MIB, rng)
        memoryview(large)[:] = first
        large.evict()
        memoryview(small)[:] = second
        small.evict()
        assert large.residency().stored == 0
        assert pager.stats().stored > 8 * MIB
        assert memoryview(large) == first
        assert memoryview(small) == second
        pager.check()


def test_larger_than_a_segment() -> None:
    """A block that no segment has room for stays in the pool, and keeps no other from the file."""
    run_child(larger_than_a_segment, timeout=90)
