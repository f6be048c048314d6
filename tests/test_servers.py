# SPDX-License-Identifier: MIT
"""The second server: several threads fault at once, without the GIL, and every word is what was written."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import Any

import numpy as np
import pytest

import uswap
from uswap._core import ffi, lib

from child import run_child
from workload import KIB, MIB, PAGE, check_injected

FAULTS_BY = ("message",)  # the second server is theirs alone

PART = 5 * PAGE  # a thread's share between those of the others; blocks have several threads'
THREADS = 3


def faulting(seconds: float, options: dict[str, Any], block: int) -> dict[str, Any]:
    """What the children run: sweeps and touches in C, each thread on parts of its own."""
    size = 24 * MIB
    if "swapfile" in options:
        options |= {"pool": 2 * MIB, "swap": 4 * size, "segment": "256KiB"}
    options = {"pool": 2 * size} | options
    with uswap.Pager(limit=size // 4, block=block, **options) as pager:
        region = pager.region(size)
        array = np.frombuffer(region, np.uint64)
        rng = np.random.default_rng(1)
        for at in range(0, len(array), 1 << 17):
            array[at : at + (1 << 17)] = rng.integers(0, 1000, len(array[at : at + (1 << 17)]))
        # Some parts are of one word, some are zeros, and some do not compress.
        array[: 1 << 16] = 7
        array[1 << 16 : 1 << 17] = 0
        array[1 << 17 : 1 << 18] = rng.integers(0, 1 << 63, 1 << 17)
        starts = range(0, size - PART + 1, PART)
        sums = {at: int(array[at // 8 : (at + PART) // 8].sum()) for at in starts}
        flips = dict.fromkeys(starts, 0)
        odd = {at: int((array[at // 8 : (at + PART) // 8] & np.uint64(1)).sum()) for at in starts}
        errors: list[str] = []
        end = time.monotonic() + seconds

        def works(k: int) -> None:
            rng = random.Random(k)
            own = [at for n, at in enumerate(starts) if n % THREADS == k]
            addresses = ffi.new("uint64_t[]", 64)
            ns = ffi.new("uint64_t[]", 64)
            while time.monotonic() < end and not errors:
                for n in range(64):
                    addresses[n] = region.address + rng.randrange(size) // 8 * 8
                lib.us_touch(addresses, 64, 0, ns)
                for _ in range(16):
                    at = rng.choice(own)
                    write = rng.random() < 0.5
                    found = int(lib.us_sweep(region.address + at, PART, int(write)))
                    # Before it was flipped an odd number of times, the odd words were even.
                    words = PART // 8
                    expected = sums[at] + (words - 2 * odd[at] if flips[at] % 2 else 0)
                    if found != expected % (1 << 64):
                        errors.append(f"thread {k} at {at}: {found:#x}, not {expected:#x}")
                    flips[at] += write

        threads = [threading.Thread(target=works, args=(k,)) for k in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors[:5]
        pager.check()
        for at in starts:
            expected = sums[at] + (PART // 8 - 2 * odd[at] if flips[at] % 2 else 0)
            assert int(lib.us_sweep(region.address + at, PART, 0)) == expected % (1 << 64), at
        pager.check()
        stats = pager.stats()
        return {
            "second": stats.second_server,
            "messages": stats.messages,
            "evicted": stats.evicted,
            "peak": stats.peak_resident,
            "limit": stats.limit,
            "injected": stats.injected,
        }


@pytest.mark.parametrize(
    ("options", "block"),
    [
        ({}, 4 * KIB),
        ({}, 64 * KIB),
        ({"readahead": 0, "take": "copy", "drop": "single"}, 16 * KIB),
        ({"codec": "zstd"}, 16 * KIB),
        ({"delays": "all:300"}, 16 * KIB),
        ({"delays": "serve:500,served:500,commit:500"}, 4 * KIB),
        ({"delays": "swapin:1000,swapped:1000"}, 16 * KIB),
        ({"swapfile": "."}, 16 * KIB),
        ({"swapfile": ".", "io": "threads", "delays": "commit:200,served:200"}, 4 * KIB),
        ({"swapfile": ".", "inject": "read:SLOW:3,write:SLOW:2"}, 16 * KIB),
        ({"inject": "copy:EAGAIN:7"}, 16 * KIB),
        (
            {"swapfile": ".", "inject": "copy:EAGAIN:3,read:EINTR:5", "delays": "swapped:200"},
            4 * KIB,
        ),
    ],
)
def test_faulting(options: dict[str, Any], block: int) -> None:
    """Whatever takes long or fails while two serve, the words are right and the limit holds."""
    options = {"servers": 2} | options
    if "delays" in options:
        seed = int(os.environ.get("USWAP_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
        print(f"seed {seed} (USWAP_TEST_SEED={seed} chooses it)")
        options["delays"] += f",seed:{seed}"
    found = run_child(faulting, args=[2.0, options, block], timeout=90).json
    check_injected(found["injected"], str(options.get("inject", "")))
    assert found["evicted"] > 4 * found["limit"]
    assert found["peak"] <= found["limit"] + block * THREADS
    assert found["second"] > 0, "the second server had something to do"


def test_one() -> None:
    """servers=1: the loop alone, as where there is one CPU."""
    found = run_child(faulting, args=[1.0, {"servers": 1}, 16 * KIB], timeout=60).json
    assert found["second"] == 0


def alone() -> None:
    """What the child of test_alone runs."""
    with uswap.Pager(limit=4 * MIB, pool=32 * MIB, servers=2) as pager:
        region = pager.region(16 * MIB)
        lib.us_sweep(region.address, 16 * MIB, 1)
        lib.us_sweep(region.address, 16 * MIB, 0)
        stats = pager.stats()
        assert stats.messages > 100
        assert stats.second_server == 0


def test_alone() -> None:
    """One thread that faults is served by the loop alone."""
    run_child(alone)


def leaves(delays: str) -> None:
    """What the child of test_leaves runs."""
    for _ in range(15):
        with uswap.Pager(
            limit=2 * MIB, pool=32 * MIB, servers=2, block=4 * KIB, delays=delays
        ) as pager:
            regions = [pager.region(4 * MIB) for _ in range(2)]
            for region in regions:
                np.frombuffer(region, np.uint64)[:] = 5

            def sweeps(region: uswap.Region) -> None:
                for _ in range(3):
                    found = lib.us_sweep(region.address, region.length, 0)
                    assert found == 5 * region.length // 8

            threads = [threading.Thread(target=sweeps, args=(r,)) for r in regions]
            for thread in threads:
                thread.start()
            regions[0].release()  # while they fault
            pager.close()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("delays", ["", "swapped:300", "serve:200,commit:200"])
def test_leaves(delays: str) -> None:
    """A region released, and a pager closed, while two servers serve."""
    run_child(leaves, args=[delays], timeout=150)
