# SPDX-License-Identifier: MIT
"""region.check(): what is out of RAM is read where it is, and what can't be read back is named."""

from __future__ import annotations

import mmap
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import uswap
from uswap import fsck

import workload
from child import run_child
from workload import KIB, MIB, data, libc

SIZE = 16 * MIB
STORED = uswap.STATES.index("stored")
LOST = uswap.STATES.index("lost")
POOLED = uswap.STATES.index("pooled")


def opened(**options: Any) -> uswap.Pager:
    """Return a pager whose pool holds a part of what the tests put into it."""
    given = {"limit": MIB, "pool": MIB, "segment": "256KiB", "swap": "64MiB", "readahead": 0}
    if "swapfile" not in options:
        given["swapfile"] = tempfile.gettempdir()
    return uswap.Pager(**{**given, **options})


def full(pager: uswap.Pager, size: int = SIZE, kinds: tuple[str, ...] = ("half",)) -> Any:
    """Return an evicted region and what it holds; nothing is on its way any more."""
    rng = random.Random(4)
    region = pager.region(size)
    content = bytearray()
    view = memoryview(region)
    for at in range(0, size, 64 * KIB):  # in order: none of it has to come back meanwhile
        content += data(kinds[at // (64 * KIB) % len(kinds)], 64 * KIB, rng)
        view[at : at + 64 * KIB] = content[at:]
    quiet(pager, region)
    return region, content


def quiet(pager: uswap.Pager, region: Any) -> None:
    """Evict, and wait until nothing is being written."""
    region.evict()
    written = -1
    while written != (written := pager.stats().written):
        time.sleep(0.1)


def ranges(region: Any, state: int, states: bytes | None = None) -> list[tuple[int, int]]:
    """The spans of a region that are in a state, as check() reports them."""
    found: list[tuple[int, int]] = []
    for k, one in enumerate(states or region.residency().states):
        if one != state:
            continue
        at = k * region.block
        n = min(region.block, region.length - at)
        if found and sum(found[-1]) == at:
            found[-1] = (found[-1][0], found[-1][1] + n)
        else:
            found.append((at, n))
    return found


def lost_by(region: Any, *args: Any) -> list[tuple[int, int]]:
    """What check() says is lost."""
    try:
        region.check(*args)
    except uswap.LostDataError as e:
        assert e.region is region
        assert repr(region) in str(e)
        assert f"{e.lost[0][1]} bytes at offset {e.lost[0][0]}" in str(e)
        return e.lost
    return []


def clean() -> None:
    """What the child of test_clean runs."""
    with opened() as pager:
        region, content = full(pager, kinds=workload.KINDS)
        other = pager.region(MIB)  # the limit is used up by something else
        view = memoryview(other)
        for at in range(0, MIB, 4096):
            view[at] = 1
        quiet(pager, region)
        before, held = pager.stats(), region.residency()
        assert held.stored > 4 * MIB, held
        assert held.pooled > 0
        region.check()
        after = pager.stats()
        assert region.residency() == held
        assert after.reads - before.reads == held.states.count(STORED)
        assert after.read_bytes - before.read_bytes >= before.stored
        assert after.faults == before.faults
        for name in ("resident", "pooled", "stored", "kept", "filled", "lost", "peak_resident"):
            assert getattr(after, name) == getattr(before, name), name
        assert after.over_limit == before.over_limit
        pager.check()
        # A part of it reads that part, whole blocks, whatever lies at its ends.
        for at, n in ((5, 1), (region.block - 1, 2), (3 * region.block, SIZE // 2 + 1), (9, 0)):
            before = pager.stats()
            region.check(at, n)
            first, end = at // region.block, -(-(at + n) // region.block) if n else 0
            assert pager.stats().reads - before.reads == held.states[first:end].count(STORED)
        assert region.residency() == held
        assert memoryview(region) == content
        pager.check()


def test_clean() -> None:
    """What is right passes, each block in the file is read once, and nothing moves."""
    run_child(clean, timeout=90)


def arguments() -> None:
    """What the child of test_arguments runs."""
    with opened() as pager:
        region = pager.region(100_000)
        for args in ((-1,), (region.length + 1,), (0, region.length + 1), (5, -1)):
            with pytest.raises(ValueError, match="accepted: 0 to"):
                region.check(*args)
        with pytest.raises(ValueError, match="start=-1"):
            region.check(-1)
        for args in ((1.5,), ("0",), (None,), (True,), (0, 1.5), (0, "1")):
            with pytest.raises(TypeError, match="accepted: int"):
                region.check(*args)
        with pytest.raises(TypeError, match="start='0'"):
            region.check("0")
        for args in ((0, 0), (region.length,), (5, 1), (1, 99_999)):
            region.check(*args)
        wrapped = pager.wrap(bytearray(300_000))
        wrapped.evict()
        wrapped.check()
        wrapped.release()
        region.release()
        for one in (region, wrapped):
            with pytest.raises(uswap.ClosedError):
                one.check()
        last = pager.region(100_000)
    with pytest.raises(uswap.ClosedError):
        last.check()


def test_arguments() -> None:
    """Wrong arguments are refused by name; a region or pager that is closed says so."""
    run_child(arguments)


def injected(inject: str) -> dict[str, int]:
    """What the children of test_injected run."""
    with opened(inject=inject) as pager:
        region, _ = full(pager, kinds=("random",))
        before = region.residency()
        assert before.lost == 0
        lost = lost_by(region)
        after, stats = region.residency(), pager.stats()
        assert lost == ranges(region, LOST)
        # What was in the file is there as before, or lost; the rest has not changed.
        for was, now in zip(before.states, after.states, strict=True):
            assert now == was or (was == STORED and now == LOST)
        assert stats.lost == after.lost == sum(n for _, n in lost)
        assert stats.stored_raw == after.stored
        pager.check()
        lost_by(region)  # what is lost is as lost when asked again
        again = region.residency().states
        assert all(now == LOST for now, was in zip(again, after.states, strict=True) if was == LOST)
        if inject == "read:EIO:1":
            assert after.stored == 0
            assert lost_by(region, 0, lost[0][0]) == []
        return {"lost": after.lost, "stored": before.stored, "retries": stats.read_retries}


@pytest.mark.parametrize("io", ["uring", "threads"])
@pytest.mark.parametrize("inject", ["read:EIO:1", "read:FLIP:1", "read:EIO:50", "read:FLIP:50"])
def test_injected(inject: str, io: str) -> None:
    """Reads that fail for good lose their blocks, and no other; those that fail once are done again."""
    found = run_child(injected, args=[inject], env={"USWAP_IO": io}, timeout=90)
    if inject == "read:EIO:1":
        assert found.json["lost"] == found.json["stored"] > 0
    elif inject == "read:FLIP:1":  # the bit may be one that no block of the span needs
        assert 0 < found.json["lost"] <= found.json["stored"]
        assert "more blocks can't be read back" in found.stderr
    else:
        assert found.json["retries"] > 0
        assert found.json["lost"] == 0
        assert "can't be read back" not in found.stderr


def objects_of(path: str, region: Any) -> dict[int, tuple[int, int]]:
    """Where the blocks that are STORED have their objects: block -> (offset of the header, length)."""
    report = fsck.check(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        reader = fsck._Reader(fd, report.size, report.segment_size)
        newest: dict[int, tuple[int, int, int]] = {}
        for segment in report.current:
            header = reader.read(segment.id * report.segment_size)
            for k in range(header.found):
                one = reader.objects[k]
                mine = (header.sequence, int(one.off), int(one.length))
                newest[one.entry] = max(newest.get(one.entry, mine), mine)
    finally:
        os.close(fd)
    states = region.residency().states
    return {
        entry - region._first: found[1:]
        for entry, found in newest.items()
        if states[entry - region._first] == STORED
    }


def overwrite(path: str, at: int, what: bytes) -> None:
    """Put bytes on the disk."""
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, what, at) == len(what)
        os.fsync(fd)
    finally:
        os.close(fd)


def corrupted(path: str) -> None:
    """What the child of test_corrupted runs."""
    with opened(swapfile=path) as pager:
        region, content = full(pager)
        region.check()
        where = objects_of(path, region)
        assert len(where) == region.residency().states.count(STORED) > 100
        rng = random.Random(8)
        hit = sorted(rng.sample(sorted(where), 12))
        hit += [k for k in (hit[0] + 1, hit[0] + 2) if k in where and k not in hit]  # a run
        for n, k in enumerate(sorted(hit)):
            off, length = where[k]
            # In the header, and the first, the last and any byte of what follows.
            at = off + (8, 32, 31 + length, 32 + rng.randrange(length))[n % 4]
            with open(path, "rb") as file:
                file.seek(at)
                was = file.read(1)
            overwrite(path, at, bytes([was[0] ^ 0x40]))
        before = region.residency()
        expected = bytes(LOST if k in hit else s for k, s in enumerate(before.states))
        assert lost_by(region) == ranges(region, LOST, expected)
        assert region.residency().states == expected
        assert pager.stats().read_retries == 2 * len(hit)
        pager.check()
        assert lost_by(region) == ranges(region, LOST, expected)
        # All else is as it was, and what is wrong is not handed out to a system call either.
        view, block = memoryview(region), region.block
        for k in range(SIZE // block):
            if k not in hit:
                assert view[k * block : (k + 1) * block] == content[k * block : (k + 1) * block]
        reader, writer = os.pipe()
        with pytest.raises(OSError, match=r"Bad address|Hardware|memory page"):
            os.write(writer, view[hit[0] * block :][:100])
        os.close(reader)
        os.close(writer)
        # Nor after the user has given its pages back.
        libc("madvise", region.address + hit[0] * block, block, mmap.MADV_DONTNEED)
        offset = hit[0] * block
        print(f"region {region._id}, offset {offset}, {block} bytes", flush=True)
        print(f"(address {region.address + offset:#x})", flush=True)
        view[offset + 5]
    print("survived", flush=True)


def test_corrupted(tmp_path: Path) -> None:
    """Of bytes overwritten on the disk exactly the blocks hit are named; a touch of one is SIGBUS."""
    path = tmp_path / "swap"
    result = run_child(corrupted, args=[str(path)], timeout=120, check=False)
    assert result.returncode == -signal.SIGBUS, result
    assert "survived" not in result.stdout
    named, address = result.stdout.splitlines()
    assert f"from the swap file: {named} {address}; a touch of it raises SIGBUS" in result.stderr


def touched(path: str) -> None:
    """What the child of test_touched runs."""
    with opened(swapfile=path) as pager:
        region, _ = full(pager)
        where = objects_of(path, region)
        k = sorted(where)[len(where) // 2]
        overwrite(path, where[k][0] + 40, b"other bytes than these")
        print(f"region {region._id}, offset {k * region.block}, {region.block} bytes", flush=True)
        memoryview(region)[k * region.block + 77]
    print("survived", flush=True)


def test_touched(tmp_path: Path) -> None:
    """A lost block that a touch finds is named by region and offset too."""
    result = run_child(touched, args=[str(tmp_path / "swap")], timeout=90, check=False)
    assert result.returncode == -signal.SIGBUS, result
    (named,) = result.stdout.splitlines()
    assert f"from the swap file: {named} (address 0x" in result.stderr


def last_in(fd: int, what: bytes) -> int:
    """Where the last occurrence of some bytes in a sparse file is."""
    found, at = -1, 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            assert found >= 0
            return found
        end = os.lseek(fd, at, os.SEEK_HOLE)
        here = os.pread(fd, end - at, at).rfind(what)
        found, at = at + here if here >= 0 else found, end


def in_pool() -> None:
    """What the child of test_pool runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB, readahead=0) as pager:
        region = pager.region(4 * MIB)
        view, block = memoryview(region), region.block
        content = data("text", 4 * MIB, random.Random(5))
        marker = random.Random(6).randbytes(block // 4)
        content = marker + content[len(marker) :]
        view[:] = content
        workload.evicted(region)
        region.check()
        # The block's bytes begin with what does not compress, so they can be found in the memory.
        (space,) = (int(fd) for fd, to in workload.descriptors().items() if "memfd:uswap" in to)
        at = last_in(space, marker[:64])  # the outbox stands before the pool
        os.pwrite(space, b"\xff" * 768, at + len(marker) - 512)
        before = region.residency()
        assert lost_by(region) == [(0, block)]
        after = region.residency()
        assert after.states == bytes([LOST]) + before.states[1:]
        pager.check()
        assert view[block:] == content[block:]
        print(f"out of the pool: region {region._id}, offset 0,", flush=True)
        view[0]
    print("survived", flush=True)


def test_pool() -> None:
    """A block of the pool that does not decompress is lost, and no other."""
    result = run_child(in_pool, timeout=60, check=False)
    assert result.returncode == -signal.SIGBUS, result
    (named,) = result.stdout.splitlines()
    assert named in result.stderr


def unmarked(how: str) -> None:
    """What the children of test_unmarked run."""
    with opened(faults=how, inject="read:EIO:1,poison:EINVAL:1") as pager:
        region, _ = full(pager)
        (at, _), *_ = lost_by(region)
        pager.check()
        print("named", flush=True)
        memoryview(region)[at]
    print("survived", flush=True)


@pytest.mark.parametrize("how", ["message", "inline"])
def test_unmarked(how: str) -> None:
    """Where the kernel can't mark lost pages, check() still names them, and a touch ends the process."""
    result = run_child(unmarked, args=[how], timeout=60, check=False)
    inline = how == "inline"
    assert result.returncode == -(signal.SIGBUS if inline else signal.SIGABRT), result
    assert result.stdout.split() == ["named"]
    assert inline or "can't be marked" in result.stderr


def busy(options: dict[str, Any], seconds: float) -> dict[str, int]:
    """What the children of test_busy run."""
    threads = workload.Threads()
    with opened(**options) as pager:
        region, content = full(pager, 8 * MIB)
        view, block = memoryview(region), region.block
        blocks = len(view) // block
        counts = [0] * 4

        def read(number: int) -> None:
            rng = random.Random(number)
            while not threads.stop.is_set():
                # Where a check comes by, each thread in a part of its own; a byte that nobody writes.
                at = rng.randrange(number, blocks, 4) * block
                assert view[at + 9] == content[at + 9]
                counts[number] += 1

        def write(number: int) -> None:
            rng = random.Random(number)
            mine: dict[int, int] = {}
            while not threads.stop.is_set():
                at = rng.randrange(number, blocks, 4) * block + 100 + number
                assert view[at] == mine.get(at, content[at])
                view[at] = mine[at] = rng.randrange(256)
                counts[number] += 1

        for number in range(4):
            threads.start(read if number < 2 else write, number)
        checks = 0
        with threads.running():
            end = time.monotonic() + seconds
            while time.monotonic() < end or checks < 4:
                region.check()
                pager.check()
                region.check(checks % 7 * 100_000, 3 * MIB)
                checks += 1
                if checks % 3 == 0:
                    region.evict()
        assert min(counts) > 50, counts
        pager.check()
        quiet(pager, region)
        before = region.residency()
        region.check()
        assert region.residency() == before
        stats = pager.stats()
        assert stats.lost == 0
        return {
            "checks": checks,
            "stored_faults": stats.faults["stored"],
            "injected": stats.injected,
        }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"io": "threads"},
        {"delays": "commit:300,serve:100"},
        {"inject": "read:FLIP:20"},
        {"inject": "read:EIO:20"},
        {"block": "64KiB", "readahead": "1MiB"},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_busy(options: dict[str, Any]) -> None:
    """Beside threads that fault on the same blocks, read and write: all of them get on, rightly."""
    found = run_child(busy, args=[options, 2.0], timeout=90).json
    assert found["checks"] > 3
    workload.check_injected(found["injected"], options.get("inject", ""))
    assert found["stored_faults"] > 50


def releasing() -> None:
    """What the child of test_released_meanwhile runs."""
    seen = 0
    with opened(delays="commit:1000") as pager:
        for round_ in range(6):
            region, content = full(pager, 4 * MIB)
            view = memoryview(region)
            threads = workload.Threads()
            outcome: list[str] = []

            def check(region: Any = region, outcome: list[str] = outcome) -> None:
                try:
                    for _ in range(1000):
                        region.check()
                    outcome.append("all")
                except uswap.ClosedError as e:
                    outcome.append(str(e))

            threads.start(check)
            time.sleep(0.02 * round_)
            region.release()
            threads.join()
            assert len(outcome) == 1
            assert "released" in outcome[0] or "no longer paged" in outcome[0], outcome
            seen += outcome[0] == "the region was released meanwhile"
            assert view == content
            pager.check()
    assert seen > 0


def test_released_meanwhile() -> None:
    """A region that is released under a check is released, and the check says ClosedError."""
    run_child(releasing, timeout=120)
