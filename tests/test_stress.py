# SPDX-License-Identifier: MIT
"""Many threads, much more data than room: every byte is what was written, and nothing hangs.

USWAP_STRESS_SECONDS makes the long one longer; USWAP_TEST_SEED repeats what a thread does, though not
how the threads fall between each other.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest

import workload
from child import run_child
from workload import BATCH, KIB, MIB

FAULTS_BY = ("inline", "message")

SECONDS = float(os.environ.get("USWAP_STRESS_SECONDS") or 8)
SHORT = min(1.5, SECONDS)


def run(seconds: float, options: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """What the children run."""
    return workload.stress(seconds, options, **more)


def _stress(seconds: float = SHORT, more: dict[str, Any] | None = None, **options: Any) -> Any:
    found = run_child(run, args=[seconds, options, more or {}], timeout=seconds * 3 + 60).json
    assert min(found["operations"]) > 0
    workload.check_injected(found["injected"], options.get("inject", ""))
    assert found["evicted"] > 2 * found["limit"]
    return found


def test_stress() -> None:
    """Eight threads in a quarter of the memory: right bytes, within limit, the pool packed densely."""
    found = _stress(SECONDS, limit=16 * MIB, more={"limit": 16 * MIB, "release": False})
    assert found["samples"] > 5 * SECONDS
    # What the kernel says, the mover's staging included.
    assert found["limit"] // 2 < found["most"] <= found["limit"] + BATCH
    assert found["over_limit"] == 0
    assert found["density"] >= 0.85
    assert found["pool_used"] > 4 * MIB


@pytest.mark.parametrize(
    "delays",
    [
        "all:300",
        "take:1000,taken:1000,status:1000",
        "drop:2000,commit:300",
        "compress:3000,compressed:1000",
        "swapin:1000,swapped:1000",
        "serve:200,served:200",
    ],
)
def test_delays(delays: str) -> None:
    """Whatever takes long while a block goes from state to state, the bytes are right."""
    found = _stress(delays=delays)
    assert found["most"] <= found["limit"] + BATCH


@pytest.mark.parametrize(
    ("inject", "counter"),
    [
        (
            "copy:EAGAIN:7,move:EAGAIN:5,vector:EINVAL:3,protect:EAGAIN:5,zero:EAGAIN:3",
            "copy_retries",
        ),
        ("move:EBUSY:11,unshare:EINVAL:1,copy:ENOMEM:50", "refused_pinned"),
        ("move:EAGAIN:2,madvise:EAGAIN:3,vector:EPERM:1", "move_retries"),
    ],
)
def test_failures(inject: str, counter: str) -> None:
    """System calls that fail now and then, as they may, cost a retry and no byte."""
    found = _stress(inject=inject)
    assert found[counter] > 0


def test_failures_while_copying() -> None:
    """The same where blocks are taken by protecting and copying."""
    _stress(
        take="copy",
        inject="copy:EAGAIN:7,protect:EAGAIN:5,madvise:EAGAIN:6,zero:EAGAIN:3,peek:EPERM:9",
    )


def test_delays_and_failures() -> None:
    """All at once."""
    _stress(delays="all:200", inject="copy:EAGAIN:3,move:EBUSY:7,protect:EAGAIN:3,vector:EINVAL:2")


def test_tiny() -> None:
    """The smallest limit there is, sixteen times overcommitted: all it does is thrash."""
    found = _stress(limit=MIB, more={"overcommit": 16, "limit": MIB})
    assert found["most"] <= MIB + BATCH


def test_little_pool() -> None:
    """A pool that is full most of the time: bytes stay right, over the limit where they must."""
    found = _stress(pool=3 * MIB, more={"sample": False})
    assert found["refused_noroom"] > 0


def test_two_pagers() -> None:
    """Two pagers in one process do not disturb each other."""
    run_child(run_two, args=[SHORT], timeout=60 + 3 * SHORT)


def run_two(seconds: float) -> None:
    """What the child runs."""
    threads = workload.Threads()
    for options in ({"block": 4 * KIB}, {"block": 64 * KIB, "take": "copy"}):
        # One sampler could not tell its own stop from the other's.
        threads.start(partial(workload.stress, sample=False), seconds, options)
    for thread in threads._threads:
        thread.join()
    threads.join()
