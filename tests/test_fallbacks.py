# SPDX-License-Identifier: MIT
"""Each way of doing it, forced: what an older kernel or a smaller machine would make of it."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import warnings
from typing import Any

import pytest

import uswap

import seccomp
import workload
from child import run_child
from workload import KINDS, MIB, data, evicted


def contents(options: dict[str, Any]) -> dict[str, Any]:
    """What the children of test_content run: all kinds of data, out and in, changed and not."""
    warnings.simplefilter("ignore", uswap.DegradedWarning)
    rng = random.Random(1)
    with uswap.Pager(limit=2 * MIB, pool=32 * MIB, **options) as pager:
        n = 700_001
        models = [bytearray(data(kind, n, rng)) for kind in KINDS]
        regions = [pager.region(n) for _ in KINDS]
        buffers = [workload.anonymous(n) for _ in KINDS]
        regions += [pager.wrap(buffer) for buffer in buffers]
        views = [memoryview(one) for one in [*regions[: len(KINDS)], *buffers]]
        models += [bytearray(model) for model in models]
        for view, model in zip(views, models, strict=True):
            view[:] = model
        for _ in range(3):
            for region, view, model in zip(regions, views, models, strict=True):
                evicted(region)
                assert view == model  # clean now
                evicted(region)
                for _ in range(5):
                    at = rng.randrange(n - 5000)
                    view[at : at + 5000] = model[at : at + 5000] = data(
                        rng.choice(KINDS), 5000, rng
                    )
                evicted(region)
                for _ in range(10):
                    at = rng.randrange(n)
                    assert view[at] == model[at]
            for view, model in zip(views, models, strict=True):
                assert view == model
        pager.check()
        stats, about = pager.stats(), pager.about()
    for view, model in zip(views, models, strict=True):
        assert view == model
    return {
        **about,
        "taken": stats.evicted_dirty_blocks,
        "dropped": stats.evicted_clean_blocks,
        "ahead": stats.readahead_blocks,
        "ratio": stats.compressed_raw / max(1, stats.compressed_out),
        "incompressible": stats.incompressible_blocks,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"take": "copy"},
        {"take": "copy", "inject": "peek:EPERM:1"},
        {"take": "copy", "uffd": "user-mode"},
        {"take": "move"},
        {"drop": "single"},
        {"drop": "vector"},
        {"take": "copy", "drop": "single", "readahead": 0, "workers": 1},
        {"uffd": "user-mode"},
        {"uffd": "syscall"},
        {"uffd": "device"},
        {"codec": "none"},
        {"codec": "zstd"},
        {"codec": "zstd", "level": -3, "workers": 3},
        {"codec": "lz4", "level": 8, "workers": 2},
        {"workers": 16},
        {"readahead": 0},
        {"block": "4KiB"},
        {"block": "128KiB"},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()) or "default",
)
def test_content(options: dict[str, Any]) -> None:
    """Whichever way blocks leave and come back, the bytes are the same."""
    from uswap._core import ffi, lib

    report = ffi.new("us_probe_report_t *")
    lib.us_probe_kernel(report)
    missing = {
        "take=move": not report.has_move,
        "drop=vector": report.self_advice_errno,
        "uffd=device": report.device_errno,
        "uffd=syscall": report.syscall_errno,
        "uffd=user-mode": report.user_mode_errno,
    }
    for name, value in options.items():
        if missing.get(f"{name}={value}"):
            pytest.skip(f"this kernel has no {name}={value}")
    found = run_child(contents, args=[options]).json
    for name in ("take", "drop", "uffd", "codec"):
        if name in options:
            assert found[name] == options[name]
    assert found["taken"] > 0
    assert found["dropped"] > 0
    # It is at most a sixteenth of the limit, and so less than two of the larger blocks.
    assert (found["ahead"] > 0) == ("readahead" not in options and options.get("block") != "128KiB")
    if options.get("codec") == "none":
        assert found["ratio"] <= 1.05 or found["incompressible"] == 0
    else:
        assert found["ratio"] > 1.2
        assert found["incompressible"] > 0


def refused_device() -> None:
    """What the child of test_no_way runs."""
    try:
        uswap.Pager(limit=MIB, pool=MIB, uffd="syscall")
    except uswap.UnsupportedKernelError as e:
        assert e.errno == errno.EPERM, e
        assert "uswap doctor" in str(e)
        print('"refused"')
    else:
        print('"allowed"')


def test_no_way() -> None:
    """What was asked for and is not possible is an error that says what to look at."""
    from child import can_run_as

    if (why := can_run_as("nobody")) is not None:
        pytest.skip(why)
    if run_child(refused_device, user="nobody").json == "allowed":
        pytest.skip("this system lets everybody have a full userfaultfd")


def without_io_uring(call: str, error: int) -> dict[str, Any]:
    """What the children of test_io_uring_refused run."""
    seccomp.forbid(call, error)
    content = data("half", 16 * MIB, random.Random(5))
    options = {
        "limit": MIB,
        "pool": MIB,
        "segment": "256KiB",
        "swapfile": tempfile.gettempdir(),
        "swap": "32MiB",
    }
    with uswap.Pager(**options) as pager:
        region = pager.region(16 * MIB)
        view = memoryview(region)
        view[:] = content
        region.evict()
        assert view == content
        pager.check()
        about, stats = pager.about(), pager.stats()
    with pytest.raises(uswap.UnsupportedKernelError) as refused:
        uswap.Pager(**options, io="uring")
    os.environ["USWAP_IO"] = "uring"
    with uswap.Pager(limit=MIB, pool=MIB) as pager:  # there is no file that it is for
        assert pager.about()["io"] == "none"
    return {
        "io": about["io"],
        "stored": stats.faults["stored"],
        "errno": refused.value.errno,
        "message": str(refused.value),
    }


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("io_uring_setup", errno.EPERM),
        ("io_uring_setup", errno.ENOSYS),
        ("io_uring_register", errno.EPERM),
    ],
)
def test_io_uring_refused(call: str, error: int) -> None:
    """Under a filter that refuses io_uring, or a part of it, threads carry the same bytes; asked for, it is an error.

    A filter that refuses io_uring_enter alone can't be tested with a pager: libuv, which sets up a ring for
    itself, ends its process then. tests/test_io.py tests the engine so.
    """
    found = run_child(without_io_uring, args=[call, error]).json
    assert found["io"] == "threads"
    assert found["stored"] > 100
    assert found["errno"] == error
    assert "io='uring' is not possible here" in found["message"]
    assert os.strerror(error) in found["message"]
    assert "accepted: 'auto' or 'threads'" in found["message"]


def big_blocks() -> None:
    """What the child of test_big_blocks runs."""
    rng = random.Random(2)
    with uswap.Pager(limit=32 * MIB, pool=64 * MIB, block=2 * MIB) as pager:
        for n in (1, 4096, 2 * MIB, 2 * MIB + 1, 9 * MIB + 12_345, 80 * MIB):
            region = pager.region(n)
            view = memoryview(region)
            model = bytearray(data("half", min(n, 2 * MIB), rng) * (n // (2 * MIB) + 1))[:n]
            view[:] = model
            evicted(region)
            assert view == model
            view[n // 2] = model[n // 2] = 77
            evicted(region)
            assert view == model
            assert pager.stats().resident <= 32 * MIB
        pager.check()


def test_big_blocks() -> None:
    """Blocks of 2 MiB, in regions that end in the middle of one."""
    run_child(big_blocks)
