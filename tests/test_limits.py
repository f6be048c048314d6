# SPDX-License-Identifier: MIT
"""What the system limits: uswap takes no more address space than it must, and says which limit refused it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import uswap
from uswap import limits

from child import run_child
from workload import MIB, data

GIB = 1 << 30


def status(field: str, pid: int | str = "self") -> int:
    """A figure of /proc/PID/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(field)


def round_trip(pager: uswap.Pager) -> None:
    """Page some memory out and in."""
    content = data("half", 8 * MIB, random.Random(1))
    region = pager.region(len(content))
    with memoryview(region) as view:
        view[:] = content
        region.evict()
        assert view == content
    region.close()


# ---- mlockall


def locked(when: str) -> dict[str, int]:
    """What the children of test_mlockall run."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    before = status("VmRSS")
    if when == "before" and libc.mlockall(3):  # MCL_CURRENT | MCL_FUTURE
        return {"refused": ctypes.get_errno()}
    # With blocks of 4 KiB the first eviction of what is locked takes so long that the limit gives way.
    with uswap.Pager(limit=4 * MIB, pool=16 * MIB, block="16KiB") as pager:
        if when == "after" and libc.mlockall(1):
            return {"refused": ctypes.get_errno()}
        region = pager.region(64 * MIB)
        locked = status("VmLck")
        with memoryview(region) as view:
            view[: 8 * MIB] = data("half", 8 * MIB, random.Random(1))
        found = region.residency().resident
        assert found <= 4 * MIB, found
        return {
            "rss": status("VmRSS") - before,
            "locked": locked,
            "pager": status("VmLck", pager.pid),
        }


@pytest.mark.parametrize("when", ["before", "after"])
def test_mlockall(when: str) -> None:
    """A program that locks its memory pays for the outbox and the like, not for sparse reservations."""
    found = run_child(locked, args=[when]).json
    if "refused" in found:
        pytest.skip(f"mlockall: {os.strerror(found['refused'])}")
    assert found["locked"] > 0
    assert found["rss"] < 200 * MIB
    assert found["pager"] == 0


# ---- reading entries


def descriptor_reused() -> None:
    """What the child of test_descriptor_reused runs."""
    with uswap.Pager(limit=4 * MIB, pool=16 * MIB) as pager:
        region = pager.region(MIB)
        (space,) = (
            int(name)
            for name in os.listdir("/proc/self/fd")
            if Path(f"/proc/self/fd/{name}").is_symlink()
            and "uswap-space" in os.readlink(f"/proc/self/fd/{name}")
        )
        kept = os.dup(space)
        with tempfile.TemporaryFile() as other:
            os.dup2(other.fileno(), space)
            with pytest.raises(OSError, match="Bad file descriptor") as e:
                region.residency()
            assert e.value.errno == errno.EBADF
        os.dup2(kept, space)
        os.close(kept)
        assert region.residency().length == MIB


def test_descriptor_reused() -> None:
    """Another file that has got the descriptor of the space is not read for it."""
    run_child(descriptor_reused)


def sparse() -> dict[str, int]:
    """What the child of test_sparse runs."""
    with uswap.Pager(limit=4 * MIB, pool=16 * MIB) as pager:
        region = pager.region(64 * GIB, block="4KiB")
        region.residency(0, MIB)  # what is mapped is touched
        before = status("RssShmem")
        found = region.residency(32 * GIB, GIB)
        assert found.empty + found.resident == GIB
        return {"shmem": status("RssShmem") - before}


def test_sparse() -> None:
    """To look at blocks that were never touched takes no memory."""
    assert run_child(sparse).json["shmem"] == 0


# ---- limits


def limited(name: str, soft: int, hard: int, options: dict[str, Any]) -> dict[str, Any]:
    """What the children of test_limit run."""
    resource.setrlimit(getattr(resource, name), (soft, hard))
    try:
        pager = uswap.Pager(limit=2 * MIB, **options)
    except (uswap.UswapError, OSError) as e:
        return {"type": type(e).__name__, "message": str(e)}
    with pager:
        round_trip(pager)
        size = {"client": status("VmSize"), "pager": status("VmSize", pager.pid)}
        # Of address space that the limit leaves, all can be paged: what it can't hold is refused as such.
        try:
            pager.region(64 * GIB, block="4KiB")
        except MemoryError as e:
            return size | {"region": str(e)}
    return size


INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("name", "soft", "hard", "pool"),
    [
        ("RLIMIT_AS", 3 * GIB, 3 * GIB, 8 * MIB),
        ("RLIMIT_AS", 3 * GIB, INFINITY, 512 * MIB),
        ("RLIMIT_DATA", GIB, GIB, 8 * MIB),
    ],
)
def test_works_within(name: str, soft: int, hard: int, pool: int) -> None:
    """Where address space is limited the table is no larger than it can be of use."""
    found = run_child(limited, args=[name, soft, hard, {"pool": pool}]).json
    assert found["client"] < 200 * MIB
    assert f"{name} (ulimit -" in found["region"]
    if hard == soft:
        assert found["pager"] < 3 * GIB


@pytest.mark.parametrize(
    ("name", "most", "options", "says"),
    [
        (
            "RLIMIT_AS",
            GIB // 2,
            {"pool": 64 * MIB},
            ["GiB wanted", "RLIMIT_AS (ulimit -v), 512 MiB"],
        ),
        (
            "RLIMIT_NOFILE",
            12,
            {"pool": MIB},
            ["Too many open files", "RLIMIT_NOFILE (ulimit -n), 12"],
        ),
        (
            "RLIMIT_FSIZE",
            100 * MIB,
            {"pool": MIB},
            ["GiB wanted", "RLIMIT_FSIZE (ulimit -f), 100 MiB"],
        ),
        (
            "RLIMIT_FSIZE",
            8 * GIB,
            {"pool": MIB, "swapfile": "", "swap": 9 * GIB, "segment": "256KiB"},
            ["swap file of 9 GiB", "RLIMIT_FSIZE (ulimit -f), 8 GiB", "smaller swap="],
        ),
    ],
    ids=["address space", "descriptors", "memfd", "swap file"],
)
def test_limit_is_named(name: str, most: int, options: dict[str, Any], says: list[str]) -> None:
    """A refusal says how much was wanted, and which limit it was."""
    if "swapfile" in options:
        options = options | {"swapfile": tempfile.gettempdir()}
    found = run_child(limited, args=[name, most, most, options]).json
    for words in says:
        assert words in found["message"], found


def open_descriptors() -> list[int]:
    """Without opening one."""
    found = []
    for fd in range(256):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.append(fd)
    return found


def few_descriptors(hard_too: bool) -> None:
    """What the children of test_any_number_of_descriptors run."""
    with uswap.Pager(limit=2 * MIB, pool=MIB) as pager:
        pager.region(MIB)
    del pager
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    before = open_descriptors()
    outcomes = []
    for most in [96, *range(56, 24, -8), *range(24, 3, -1)]:  # a hard limit can't be raised again
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most if hard_too else hard))
        try:
            with uswap.Pager(limit=2 * MIB, pool=MIB) as pager:
                pager.region(MIB)
            outcomes.append("")
        except uswap.PagerStartError as e:
            assert "RLIMIT_NOFILE (ulimit -n)" in str(e), (most, e)
            outcomes.append(str(e))
    del pager
    assert open_descriptors() == before
    assert not outcomes[0]
    assert outcomes[-1]
    assert any("of the pager process" in one for one in outcomes) == hard_too


@pytest.mark.parametrize("hard_too", [False, True], ids=["soft", "hard"])
def test_any_number_of_descriptors(hard_too: bool) -> None:
    """Wherever in its start the pager finds no descriptor left, it says so, and nothing stays open."""
    run_child(few_descriptors, args=[hard_too], timeout=100)


def no_descriptors(how: str) -> None:
    """What the children of test_no_descriptors run."""
    if how == "large numbers":  # above those that an fd_set has room for
        resource.setrlimit(resource.RLIMIT_NOFILE, (9_000, 9_000))
        for _ in range(1 << 13):
            os.dup(0)
    with uswap.Pager(limit=2 * MIB, pool=32 * MIB, register="early") as pager:
        region = pager.region(8 * MIB)
        view = memoryview(region)
        view[:] = model = data("random", len(view), random.Random(1))
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(how == "one"), int(how == "one")))
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.3, "a thread does not sleep"
        assert view == model
        view[:] = model[::-1]
        region.evict()
        assert view == model[::-1]
        with region.pinned(0, MIB):
            pager.check()
        other = pager.region(MIB)
        memoryview(other)[:4] = b"abcd"
        pager.stats()
        region.residency()
    assert view == model[::-1]


@pytest.mark.parametrize("how", ["none", "one", "large numbers"])
def test_no_descriptors(how: str) -> None:
    """A process that allows itself no descriptors any more, as a sandbox does: poll() is refused, and all works."""
    if how == "large numbers" and resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 9_000:
        pytest.skip("fewer than 9,000 descriptors are allowed here")
    run_child(no_descriptors, args=[how], timeout=60)


def no_mappings() -> None:
    """What the child of test_no_mappings runs."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    with uswap.Pager(limit=8 * MIB, pool=64 * MIB) as pager:
        round_trip(pager)
        buffer = bytearray(8 * MIB)
        base = libc.mmap(None, most * 8192, 1, 0x4022, -1, 0)
        at = base
        while libc.mprotect(at, 4096, 0) == 0:
            at += 8192
        with pytest.raises(MemoryError, match=f"vm.max_map_count, {most} mappings"):
            pager.wrap(buffer)
        with pytest.raises(uswap.PagerStartError, match=f"vm.max_map_count, {most} mappings"):
            uswap.Pager(limit=2 * MIB, pool=MIB)
        libc.munmap(ctypes.c_void_p(base), ctypes.c_size_t(most * 8192))
        with pager.wrap(buffer):
            round_trip(pager)


def test_no_mappings() -> None:
    """The kernel's limit on the number of mappings is named too, and what is paged stays whole."""
    if int(Path("/proc/sys/vm/max_map_count").read_text()) > 300_000:
        pytest.skip("vm.max_map_count is large here")
    run_child(no_mappings)


@pytest.mark.parametrize("error", sorted(limits.LIMITS))
def test_explain(error: int) -> None:
    """Whatever the error, the message has what failed, and the error's own words."""
    text = limits.explain(error, "that", 5 * MIB)
    assert text.startswith(f"that: {os.strerror(error)}")
    assert ("5 MiB wanted" in text) == (error in (errno.ENOMEM, errno.EAGAIN, errno.EFBIG))
    assert ("uswap doctor" in text) == (error in (errno.EPERM, errno.ENOSYS))
