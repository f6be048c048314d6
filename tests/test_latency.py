# SPDX-License-Identifier: MIT
"""The latency of a fault is the time for which its thread stands still, whoever ends that."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

import uswap
from uswap._core import ffi, lib

from child import run_child
from workload import KIB, MIB

FAULTS_BY = ("message",)  # of faults that the pager process serves

MS = 1_000_000
SIZE = 8 * MIB


def filled(pager: uswap.Pager) -> uswap.Region:
    """A region of numbers, all of which are out."""
    region = pager.region(SIZE)
    content = random.Random(1).randbytes(MIB)
    view = memoryview(region)
    for at in range(0, SIZE, MIB):
        view[at : at + MIB] = content
    region.evict()
    return region


def ahead(options: dict[str, Any]) -> dict[str, int]:
    """What the children of test_brought_by_a_worker run: a reader that catches up with its read-ahead."""
    with uswap.Pager(
        limit=4 * MIB, delays="swapin:50000", servers=1, workers=1, **options
    ) as pager:
        region = filled(pager)
        if "swapfile" in options:
            region.migrate("file")
        before = pager.stats()
        lib.us_sweep(region.address, 2 * MIB, 0)
        pager.check()
        after = pager.stats()
    kind = after.latency["present"]
    return {"faults": after.faults["present"] - before.faults["present"], "max": kind.max}


@pytest.mark.parametrize(
    "options",
    [
        {"pool": 32 * MIB},
        {"pool": 2 * MIB, "segment": "256KiB", "swapfile": "/var/tmp", "swap": "64MiB"},
    ],
    ids=["pool", "file"],
)
def test_brought_by_a_worker(options: dict[str, Any]) -> None:
    """A fault on a block that a worker is bringing in lasts until the worker has copied it."""
    found = run_child(ahead, args=[options], timeout=120).json
    assert found["faults"] > 0
    assert found["max"] > 10 * MS  # of delays up to 50 ms


def together() -> tuple[int, int]:
    """Threads fault, and each fault takes up to 8 ms: how many the second server served, and all's p90 in ns."""
    with uswap.Pager(
        limit=16 * MIB,
        pool=32 * MIB,
        block=4 * KIB,
        readahead=0,
        register="early",
        servers=2,
        delays="serve:8000",
    ) as pager:
        region = pager.region(4 * MIB, block=4 * KIB)
        pages = region.length // 3 // 4096

        def touch(k: int) -> None:
            order = random.Random(k).sample(range(k * pages, (k + 1) * pages), 120)
            addresses = ffi.new("uint64_t[]", [region.address + 4096 * page for page in order])
            lib.us_touch(addresses, len(order), 1, ffi.new("uint64_t[]", len(order)))

        region.evict()
        threads = [threading.Thread(target=touch, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        now = pager.stats()
        return now.second_server, now.latency["empty"].p90


def two() -> list[tuple[int, int]]:
    """What the child of test_wait_for_the_other_server runs.

    How often the second server serves depends on what else the machine does.
    """
    rounds: list[tuple[int, int]] = []
    while len(rounds) < 30 and (not rounds or rounds[-1][0] <= 10 or rounds[-1][1] <= 9 * MS):
        rounds.append(together())
    return rounds


def test_wait_for_the_other_server() -> None:
    """The time of a fault includes the wait for the lock, while the other server serves."""
    rounds = run_child(two, timeout=240).json
    second, p90 = rounds[-1]
    assert second > 10, rounds
    # Served within 8 ms, once they have the lock; but who waits does so for the other's whole services before.
    assert p90 > 9 * MS, rounds
