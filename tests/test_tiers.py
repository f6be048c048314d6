# SPDX-License-Identifier: MIT
"""Tiers: blocks move between any two of them, and are in one at a time."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import threading
import time
from typing import Any

import pytest

import uswap

import workload
from child import run_child
from workload import KIB, MIB, data

FAULTS_BY = ("inline", "message")

SECONDS = min(3.0, float(os.environ.get("USWAP_STRESS_SECONDS") or 3))
KINDS = ("text", "numbers", "random")


def three(**pools: Any) -> list[Any]:
    """LZ4, zstd, a file."""
    return [
        uswap.Pool(pools.get("first", 8 * MIB)),
        uswap.Pool(pools.get("second", 8 * MIB), codec="zstd", level=3),
        uswap.File("/var/tmp", pools.get("file", 64 * MIB), segment="256KiB"),
    ]


def mixed(n: int, seed: int) -> bytes:
    """Blocks of all kinds that do not fill with one word."""
    rng = random.Random(seed)
    return b"".join(data(KINDS[k % len(KINDS)], 16 * KIB, rng) for k in range(n // (16 * KIB)))


def moving(block: int) -> None:
    """What the child of test_any_two runs."""
    content = mixed(4 * MIB, 1)
    with uswap.Pager(limit=MIB, tiers=three(), readahead=0) as pager:
        region = pager.region(len(content), block=block)
        view = memoryview(region)
        view[:] = content
        region.evict()
        names = pager.tiers
        assert names == ("pool", "pool2", "file")
        assert region.residency().tiers == {"pool": len(content), "pool2": 0, "file": 0}
        # Each ordered pair once: a walk through all six edges.
        walk = ["pool2", "file", "pool", "file", "pool2", "pool"]
        for was, to in itertools.pairwise(["pool", *walk]):
            before = {tier.name: tier for tier in pager.stats().tiers}
            counted = pager.stats()
            region.migrate(to)
            assert region.residency().tiers == dict.fromkeys(names, 0) | {to: len(content)}
            now = {tier.name: tier for tier in pager.stats().tiers}
            # The room in the one is given up for that in the other, and no third is passed through.
            assert now[was].used == now[was].raw == now[was].bytes == 0, (was, to, now)
            assert now[to].raw == len(content)
            (third,) = set(names) - {was, to}
            assert now[third].came_blocks == before[third].came_blocks
            assert now[to].came_blocks - before[to].came_blocks == len(content) // block
            if to == "file":  # as it is: not a byte more or less
                assert now["file"].bytes == before[was].bytes
            assert pager.stats().total_faults == counted.total_faults
            pager.check()
        assert view == content
        # Read back from each.
        for to in names:
            region.evict()
            region.migrate(to)
            at = random.Random(to).randrange(len(content) // 2)
            assert view[at : at + 512 * KIB] == content[at : at + 512 * KIB]
            pager.check()
        second = next(tier for tier in pager.stats().tiers if tier.name == "pool2")
        assert second.recompressed_blocks > 0
        assert second.recompressed_out < second.recompressed_in * 15 // 16
    assert view == content


@pytest.mark.parametrize("block", [4 * KIB, 64 * KIB])
def test_any_two(block: int) -> None:
    """From each tier to each other, directly, with room in one of them only; the bytes stay."""
    run_child(moving, args=[block], timeout=60)


def sinking() -> None:
    """What the child of test_sink runs."""
    content = mixed(24 * MIB, 2)
    with uswap.Pager(limit=2 * MIB, tiers=three(first=4 * MIB, second=2 * MIB)) as pager:
        region = pager.region(len(content))
        view = memoryview(region)
        view[:] = content
        region.evict()
        where = region.residency().tiers
        first, second, file = pager.stats().tiers
        assert min(where.values()) > 0, where
        # What was written first is coldest, and has sunk lowest.
        assert region.residency(0, MIB).tiers["file"] > MIB // 2
        assert region.residency(23 * MIB, MIB).tiers["pool"] > MIB // 2
        assert first.used <= first.budget
        assert second.used <= second.budget
        assert file.came_blocks <= second.came_blocks
        assert second.recompressed_blocks > 0
        pager.check()
        assert view == content
        pager.check()
    assert view == content


def test_sink() -> None:
    """What is cold sinks from tier to tier, in the order in which it came."""
    run_child(sinking, timeout=60)


def two_pools() -> None:
    """What the child of test_full runs."""
    content = mixed(16 * MIB, 3)
    tiers = [uswap.Pool(3 * MIB, name="hot"), uswap.Pool(3 * MIB, codec="zstd", name="cold")]
    # Shuffled, the numbers among the data would find room.
    with uswap.Pager(limit=4 * MIB, tiers=tiers, shuffle="off") as pager:
        region = pager.region(len(content))
        view = memoryview(region)
        view[:] = content
        assert view == content
        assert set(region.residency().tiers) == {"hot", "cold"}
        region.evict()
        stats = pager.stats()
        assert all(tier.used <= tier.budget for tier in stats.tiers)
        assert stats.refused_noroom > 0
        with pytest.raises(OSError, match="No space left"):
            region.migrate("cold")
        pager.check()
        assert view == content


def test_full() -> None:
    """Two pools that are too small for the data: the rest stays resident, and nothing is lost."""
    run_child(two_pools, timeout=60)


def stress(seconds: float, options: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """What the children of the stress tests run."""
    with tempfile.TemporaryDirectory() as directory:
        tiers = [
            uswap.Pool(MIB),
            uswap.Pool(MIB, codec="zstd", level=1),
            uswap.File(directory, 64 * MIB, segment="256KiB"),
        ]
        return workload.stress(
            seconds, {"tiers": tiers, **options}, threads=4, sample=False, **more
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delays": "all:300"},
        {"delays": "commit:1000,compress:1500"},
        {"inject": "write:SLOW:1,read:SLOW:4"},
        {"inject": "read:EIO:40,write:EIO:20,copy:EAGAIN:7,move:EBUSY:9"},
    ],
    ids=["plain", "delays", "slow workers", "slow disk", "failures"],
)
def test_stress(options: dict[str, str]) -> None:
    """Four threads, three tiers, blocks sent from one to the other meanwhile: every byte is right."""
    found = run_child(stress, args=[SECONDS, options, {}], timeout=SECONDS * 4 + 90).json
    assert min(found["operations"]) > 0
    workload.check_injected(found["injected"], options.get("inject", ""))
    assert found["lost"] == 0
    assert all(came > 0 for came in found["came"][1:])
    assert found["migrations"] > 0


def leaving() -> None:
    """What the child of test_released_meanwhile runs."""
    content = mixed(8 * MIB, 11)
    with uswap.Pager(limit=16 * MIB, tiers=three(first=16 * MIB), inject="write:SLOW:2") as pager:
        for turn in range(12):
            region = pager.region(len(content))
            view = memoryview(region)
            view[:] = content
            region.evict()
            threads = workload.Threads()

            def send(region: Any = region) -> None:
                try:
                    while True:
                        region.migrate("file")
                        region.migrate("pool")
                except uswap.ClosedError:
                    pass

            threads.start(send)
            time.sleep(0.002 * turn)
            region.release()
            threads.join()
            assert view == content
            pager.check()
        # Nothing of it is left under way: the pager goes on as ever.
        other = pager.region(len(content))
        view = memoryview(other)
        view[:] = content
        other.evict()
        other.migrate("file")
        assert other.residency().tiers["file"] == len(content)
        assert view == content
        pager.check()


def just_left(op: str) -> None:
    """What the child of test_just_released runs: the pager knows of the release before the region does."""
    content = mixed(MIB, 12)
    with uswap.Pager(limit=16 * MIB, tiers=three(first=16 * MIB)) as pager:
        region = pager.region(len(content))
        memoryview(region)[:] = content
        region.evict()
        end, removed = region._end, threading.Event()

        def slow(*args: Any, **kwargs: Any) -> None:
            end(*args, **kwargs)
            removed.set()
            time.sleep(0.3)

        region._end = slow  # type: ignore[method-assign]
        threads = workload.Threads()
        threads.start(region.release)
        removed.wait()
        try:
            region.check() if op == "check" else region.migrate("file")
        except uswap.ClosedError:
            pass
        else:
            raise AssertionError("the pager has no such region any more")
        threads.join()
        assert memoryview(region) == content


@pytest.mark.parametrize("op", ["migrate", "check"])
def test_just_released(op: str) -> None:
    """A call that comes while a release is about to return says that the region is closed."""
    run_child(just_left, args=[op], timeout=60)


def test_released_meanwhile() -> None:
    """A region that is released while its blocks are sent from tier to tier."""
    run_child(leaving, timeout=90)


@pytest.mark.parametrize(
    ("tiers", "error", "match"),
    [
        ("pool", TypeError, "accepted: a list"),
        ([], ValueError, "accepted: 1 to 3 pools"),
        ([1], TypeError, r"tiers\[0\]=1 is a int"),
        ([uswap.File("/var/tmp")], ValueError, "accepted: 1 to 3 pools"),
        ([uswap.File("/var/tmp"), uswap.Pool(MIB)], ValueError, "then at most one file"),
        ([uswap.Pool(MIB)] * 4, ValueError, "accepted: 1 to 3 pools"),
        ([uswap.Pool(MIB, name="a"), uswap.Pool(MIB, name="a")], ValueError, "twice"),
        ([uswap.Pool(MIB), uswap.Pool("7")], ValueError, r"tiers\[1\].size"),
        ([uswap.Pool(MIB, codec="lzma")], ValueError, r"tiers\[0\].codec='lzma'"),
        ([uswap.Pool(MIB, codec="zstd", level=99)], ValueError, r"tiers\[0\].level=99"),
        ([uswap.Pool(MIB), uswap.File("")], ValueError, r"tiers\[1\].path is empty"),
        ([uswap.Pool(MIB), uswap.File("/var/tmp", 9)], ValueError, "swap=9"),
        (
            [uswap.Pool(64 * MIB), uswap.Pool(MIB), uswap.File("/var/tmp")],
            uswap.LimitError,
            "segment",
        ),
    ],
)
def test_bad_tiers(tiers: Any, error: type[Exception], match: str) -> None:
    """What is no list of tiers is refused, with what is accepted."""
    with pytest.raises(error, match=match):
        uswap.Pager(limit=16 * MIB, tiers=tiers)


@pytest.mark.parametrize(
    "other", [{"pool": MIB}, {"swapfile": "/var/tmp"}, {"codec": "zstd"}, {"overwrite": True}]
)
def test_tiers_and_keywords(other: dict[str, Any]) -> None:
    """The list and the keywords that are short for it exclude each other."""
    with pytest.raises(ValueError, match="beside tiers="):
        uswap.Pager(limit=16 * MIB, tiers=[uswap.Pool(MIB)], **other)


def wrong_names() -> None:
    """What the child of test_bad_migrate runs."""
    with uswap.Pager(limit=2 * MIB, pool=8 * MIB) as pager:
        region = pager.region(MIB)
        with pytest.raises(ValueError, match="accepted: pool"):
            region.migrate("file")
        with pytest.raises(ValueError, match="offset"):
            region.migrate("pool", 2 * MIB)
        region.migrate("pool")
        assert region.residency().tiers == {"pool": 0}
    with pytest.raises(uswap.ClosedError):
        region.migrate("pool")


def test_bad_migrate() -> None:
    """A tier that is not there, and a range that is not."""
    run_child(wrong_names, timeout=30)


def few_large(case: str) -> None:
    """What the child of test_few_large_blocks runs: objects that a pool holds few of."""
    content = random.Random(9).randbytes(24 * MIB)
    tiers = {
        "file to pool": [uswap.Pool(16 * MIB), uswap.File("/var/tmp", 128 * MIB, segment="4MiB")],
        "pool to pool": [
            uswap.Pool(64 * MIB),
            uswap.Pool(16 * MIB),
            uswap.File("/var/tmp", 128 * MIB, segment="4MiB"),
        ],
        "sinking": [
            uswap.Pool(16 * MIB),
            uswap.Pool(16 * MIB),
            uswap.File("/var/tmp", 128 * MIB, segment="4MiB"),
        ],
    }[case]
    with uswap.Pager(limit=64 * MIB, tiers=tiers, block=2 * MIB) as pager:
        region = pager.region(len(content))
        view = memoryview(region)
        view[:] = content
        region.evict()
        assert region.residency().resident == 0
        if case == "file to pool":
            region.migrate("file")
            region.migrate("pool")
            assert region.residency().tiers["pool"] > 8 * MIB
        elif case == "pool to pool":
            region.migrate("pool2")
            assert region.residency().tiers["pool"] == 0
        pager.check()
        assert view == content


@pytest.mark.parametrize("case", ["file to pool", "pool to pool", "sinking"])
def test_few_large_blocks(case: str) -> None:
    """Between a pool's marks there may be no room for one more: who waits has it sink further."""
    run_child(few_large, args=[case], timeout=60)


def within(tiers: int) -> dict[str, int]:
    """What the child of test_within_limit runs."""
    content = random.Random(10).randbytes(MIB)
    pools = [uswap.Pool(4 * MIB), uswap.Pool(2 * MIB, codec="zstd")][: tiers - 1]
    with uswap.Pager(
        limit=4 * MIB, tiers=[*pools, uswap.File("/var/tmp", 128 * MIB, segment="512KiB")]
    ) as pager:
        region = pager.region(64 * MIB)
        view = memoryview(region)
        for at in range(0, len(view), MIB):
            view[at : at + MIB] = content
        stats = pager.stats()
        assert stats.stored > 48 * MIB
        return {"over": stats.over_limit, "refused": stats.refused_noroom}


@pytest.mark.parametrize("tiers", [2, 3])
def test_within_limit(tiers: int) -> None:
    """While something sinks there will be room: nobody goes over the limit meanwhile."""
    assert run_child(within, args=[tiers], timeout=60).json == {"over": 0, "refused": 0}
