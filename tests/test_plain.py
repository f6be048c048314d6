# SPDX-License-Identifier: MIT
"""Plain memory: what fits is not registered, and nothing is lost when it is after all."""

from __future__ import annotations

import mmap
import os
import random
import threading
from typing import Any

import numpy as np
import pytest

import uswap

import workload
from child import run_child
from workload import KIB, MIB, PAGE, data, evicted, libc, resident_bytes

NORESERVE = 0x4000  # MAP_NORESERVE


def registered(region: uswap.Region) -> int:
    """Return how many bytes of a region the kernel says are registered with userfaultfd."""
    total, inside = 0, False
    with open("/proc/self/smaps", encoding="ascii") as file:
        for line in file:
            first = line.split(" ", 1)[0]
            if "-" in first and not first.endswith(":"):
                low, high = (int(part, 16) for part in first.split("-"))
                low, high = max(low, region.address), min(high, region.address + region.length)
                inside = low < high
            elif inside and first == "VmFlags:" and {"um", "uw"} <= set(line.split()):
                total += high - low
    return total


def fits() -> None:
    """What the child of test_fits runs."""
    with uswap.Pager(limit=64 * MIB, pool=64 * MIB) as pager:
        region = pager.region(16 * MIB)
        assert registered(region) == 0
        where = region.residency()
        assert (where.resident, where.empty) == (0, region.length)
        view = memoryview(region)
        view[5 * MIB] = 1
        where = region.residency()
        assert where.states[5 * MIB // region.block] == uswap.STATES.index("resident")
        assert 0 < where.resident < region.length
        model = bytearray(random.Random(1).randbytes(16 * MIB))
        view[:] = model
        assert region.residency().resident == region.length
        array = np.zeros(8 * MIB, np.uint8)
        wrapped = pager.wrap(array)
        array[:] = 3
        assert registered(wrapped) == 0
        stats = pager.stats()
        assert stats.plain == stats.resident == region.length + wrapped.length
        assert sum(stats.faults.values()) == stats.evicted_dirty_blocks == 0
        pager.check()
        assert view == model
        assert (array == 3).all()
        wrapped.release()
        assert pager.stats().plain == region.length
        del view
        region.close()
        stats = pager.stats()
        assert stats.plain == stats.resident == 0
        assert (array == 3).all()


def test_fits() -> None:
    """Memory within the limit is not registered: no fault, the right residency, accounted for."""
    run_child(fits)


def grows() -> None:
    """What the child of test_grows runs."""
    rng = random.Random(2)
    for block in (4 * KIB, 64 * KIB, 2 * MIB):
        with uswap.Pager(limit=64 * MIB, pool=256 * MIB, block=block) as pager:
            first = pager.region(20 * MIB + 3 * PAGE)
            models = {first: bytearray(rng.randbytes(len(first)))}
            memoryview(first)[:] = models[first]
            touched = pager.region(24 * MIB)  # a piece and a bit, of which little is touched
            models[touched] = bytearray(24 * MIB)
            for at in range(0, 24 * MIB, 8 * MIB):
                models[touched][at] = memoryview(touched)[at] = 7
            assert registered(first) == registered(touched) == 0
            more = pager.region(48 * MIB)
            models[more] = bytearray(rng.randbytes(48 * MIB))
            pager.check()
            assert 0 < registered(more) < more.length, "a part has room"
            stats = pager.stats()
            assert stats.plain == stats.resident <= stats.limit
            memoryview(more)[:] = models[more]
            pager.check()
            assert registered(first) == first.length, "the oldest has to make room"
            stats = pager.stats()
            assert stats.plain < stats.limit // 2
            assert stats.peak_resident <= stats.limit
            # What nobody has touched was never there; a touch brings 2 MiB where there are huge pages.
            assert touched.residency().empty >= 12 * MIB
            for region, model in models.items():
                assert memoryview(region) == model
            for region in models:
                evicted(region)
            for region, model in models.items():
                assert memoryview(region) == model
            pager.check()


def test_grows() -> None:
    """When more is wanted than fits, plain memory is registered, and its bytes leave like any other."""
    run_child(grows, timeout=120)


def ranges() -> None:
    """What the child of test_ranges runs."""
    rng = random.Random(3)
    with uswap.Pager(limit=64 * MIB, pool=64 * MIB) as pager:
        region = pager.region(40 * MIB)
        model = bytearray(rng.randbytes(40 * MIB))
        memoryview(region)[:] = model
        region.prefetch()
        region.check()
        region.migrate(pager.tiers[0])
        assert registered(region) == 0, "what concerns blocks that are out leaves it alone"
        with region.pinned(17 * MIB, MIB) as part:
            assert part == model[17 * MIB : 18 * MIB]
            assert registered(region) > 0
            region.evict()
            where = region.residency()
            assert where.resident == MIB
            assert part == model[17 * MIB : 18 * MIB]
        pager.check()
        assert memoryview(region) == model
        # A hole that the user makes in plain memory is zeros, as ever.
        hole = pager.region(8 * MIB)
        memoryview(hole)[:] = model[: 8 * MIB]
        libc("madvise", hole.address + MIB, MIB, mmap.MADV_DONTNEED)
        evicted(hole)
        assert memoryview(hole)[:MIB] == model[:MIB]
        assert memoryview(hole)[MIB : 2 * MIB] == bytes(MIB)
        assert memoryview(hole)[2 * MIB :] == model[2 * MIB : 8 * MIB]
        # Read and never written: the kernel's zero page, or its huge one.
        read = pager.region(8 * MIB)
        assert memoryview(read) == bytes(8 * MIB)
        read.evict()
        assert memoryview(read) == bytes(8 * MIB)
        pager.check()


def test_ranges() -> None:
    """Evicting and pinning register; holes and pages that were only read are zeros afterwards."""
    run_child(ranges)


def unmapped() -> None:
    """What the child of test_unmapped runs."""
    with uswap.Pager(limit=64 * MIB, pool=64 * MIB) as pager:
        region = pager.region(32 * MIB)
        memoryview(region)[:] = bytes([9]) * (32 * MIB)
        address = region.address
        libc("munmap", address + 16 * MIB, 16 * MIB)  # a piece, to the byte
        # So that nothing else is put there.
        other = pager.region(60 * MIB)
        memoryview(other)[:] = bytes([5]) * (60 * MIB)
        pager.check()
        assert memoryview(region)[: 16 * MIB] == bytes([9]) * (16 * MIB)
        assert memoryview(other) == bytes([5]) * (60 * MIB)
        print("done", flush=True)
        os._exit(0)  # the region's memory is not what mmap thinks


def test_unmapped() -> None:
    """What the user unmapped behind the pager's back needs no room, and stops nothing."""
    assert "done" in run_child(unmapped).stdout


def racing(delay: str, block: int) -> None:
    """What the child of test_racing runs."""
    with uswap.Pager(limit=64 * MIB, pool=256 * MIB, block=block, delays=delay) as pager:
        regions = [pager.region(48 * MIB) for _ in range(3)]
        stop = threading.Event()
        errors: list[str] = []

        def writes(k: int) -> None:
            rng = random.Random(k)
            arrays = [np.frombuffer(region, np.uint64)[k::4] for region in regions]
            models = [np.zeros(len(array), np.uint64) for array in arrays]
            for turn in range(1, 40):
                which = rng.randrange(3)
                start = rng.randrange(len(arrays[0]))
                end = min(start + rng.randrange(1 << 18), len(arrays[0]))
                if not (arrays[which][start:end] == models[which][start:end]).all():
                    errors.append(f"thread {k}, turn {turn}: {which} {start} to {end}")
                arrays[which][start:end] = models[which][start:end] = turn << 8 | k
            for array, model in zip(arrays, models, strict=True):
                if not (array == model).all():
                    errors.append(f"thread {k} at the end")

        threads = [threading.Thread(target=writes, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        assert not errors, errors
        pager.check()
        stats = pager.stats()
        assert stats.plain == 0, "pieces were registered meanwhile"
        assert stats.evicted_dirty_blocks > 0
        spans = [(region.address, region.length) for region in regions]
        assert resident_bytes("self", spans) <= stats.limit + workload.BATCH


def test_racing() -> None:
    """Threads write while pieces are registered under their hands: every word is what was written."""
    for delay, block in (("", 4 * KIB), ("plain:3000", 16 * KIB), ("all:200", 64 * KIB)):
        run_child(racing, args=[delay, block], timeout=180)


def no_pagemap(path: Any, *args: Any, **more: Any) -> int:
    """Stand in for os.open where a process can't see its own pages."""
    if str(path).endswith("/pagemap"):
        raise FileNotFoundError(path)
    return os_open(path, *args, **more)


os_open = os.open


def early() -> None:
    """What the child of test_early runs."""
    options: list[dict[str, Any]] = [{"register": "early"}, {}]
    for option in options:
        if not option:
            os.open = no_pagemap
        with uswap.Pager(limit=64 * MIB, pool=64 * MIB, **option) as pager:
            region = pager.region(8 * MIB)
            assert registered(region) == region.length
            assert pager.stats().plain == 0
            memoryview(region)[:] = bytes([1]) * (8 * MIB)
            assert sum(pager.stats().faults.values()) > 0
            wrapped = pager.wrap(bytearray(4 * MIB))
            assert registered(wrapped) == wrapped.length


def test_early() -> None:
    """register="early", or no /proc: all is registered at once."""
    run_child(early)


def forked(wrapped: bool) -> None:
    """What the children of test_forked run."""
    content = data("random", 8 * MIB, random.Random(5))
    buffer = bytearray(content)
    with uswap.Pager(limit=64 * MIB, pool=64 * MIB) as pager:
        region = pager.wrap(buffer) if wrapped else pager.region(8 * MIB)
        view = region._view()
        view[:] = inside = content[: len(view)]
        assert pager.stats().plain == region.length
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(reader, 1)  # meanwhile the parent changes, registers and evicts all of it
            right = view == inside
            view[:] = bytes(len(view))
            os._exit(0 if right and not any(view) else 1)
        region.evict()
        assert pager.stats().plain == 0
        assert region.residency().resident == 0, "shared with a child, and leaves all the same"
        assert view == inside
        view[:] = changed = inside[::-1]
        region.evict()
        os.write(writer, b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert view == changed
        # What is registered is the parent's alone.
        child = os.fork()
        if child == 0:
            view[0]
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), status
        assert os.WTERMSIG(status) == 11
        pager.check()
        view.release()


@pytest.mark.parametrize("wrapped", [False, True])
def test_forked(wrapped: bool) -> None:
    """Plain memory is a child's by copy on write, as any; what has been registered is not."""
    run_child(forked, args=[wrapped])


def forked_half() -> None:
    """What the child of test_forked_half runs."""
    content = data("random", 16 * MIB, random.Random(5))
    with uswap.Pager(limit=8 * MIB, pool=64 * MIB) as pager:
        region = pager.region(16 * MIB)
        view = memoryview(region)
        view[:] = content
        plain = pager.stats().plain
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert view == content
        for at in range(0, len(view), MIB // 2):
            child = os.fork()
            if child == 0:
                os._exit(0 if view[at] == content[at] else 1)
            status = os.waitpid(child, 0)[1]
            assert status == 0 or os.WTERMSIG(status) == 11, "zeros"
        print(plain)
        view.release()


def test_forked_half() -> None:
    """Of a region in parts plain and in parts registered a child has what it has, and never zeros."""
    run_child(forked_half)


# ---- wrapped memory that is more than the limit has room for


def reserved(size: int) -> mmap.mmap:
    """Memory of which no page is there yet."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)


def untouched(register: str) -> None:
    """What the children of test_untouched run."""
    with uswap.Pager(limit=16 * MIB, pool=16 * MIB, register=register, block=4 * KIB) as pager:
        buffer = reserved(1 << 30)
        for at in range(0, len(buffer), 128 * MIB):
            buffer[at] = 7
        pager.wrap(buffer)
        stats = pager.stats()  # 2**18 blocks, of which eight hold something
        assert stats.resident <= stats.limit + 8 * 4 * KIB  # these may be on their way out
        assert stats.evicted_dirty_blocks <= 8
        pager.check()
        assert [buffer[at] for at in range(0, len(buffer), 128 * MIB)] == [7] * 8
        assert not any(buffer[at + 1] for at in range(0, len(buffer), 16 * MIB))
        pager.check()


@pytest.mark.parametrize("register", ["late", "early"])
def test_untouched(register: str) -> None:
    """Wrapped memory that nobody has touched does not count as resident, and nothing of it is taken out."""
    run_child(untouched, args=[register], timeout=60)


def untouched_race(register: str) -> None:
    """What the children of test_untouched_race run."""
    threads, size = 3, 96 * MIB
    stop = threading.Event()
    errors: list[str] = []
    with uswap.Pager(limit=8 * MIB, pool=64 * MIB, register=register, block=4 * KIB) as pager:
        buffer = reserved(size)
        words = memoryview(buffer).cast("Q")
        written: list[dict[int, int]] = [{} for _ in range(threads)]

        def write(k: int) -> None:
            rng = random.Random(k)
            while not stop.is_set():
                at = rng.randrange(len(words) // threads) * threads + k
                if words[at] != written[k].get(at, 0):
                    errors.append(f"{at}: {words[at]}, not {written[k].get(at, 0)}")
                words[at] = written[k][at] = rng.getrandbits(64)

        running = [threading.Thread(target=write, args=(k,)) for k in range(threads)]
        for thread in running:
            thread.start()
        for _ in range(20):
            region = pager.wrap(buffer)
            region.release()
        stop.set()
        for thread in running:
            thread.join()
        pager.check()
    assert not errors, errors[:5]
    assert all(words[at] == value for one in written for at, value in one.items())
    assert sum(len(one) for one in written) > 100


@pytest.mark.parametrize("register", ["late", "early"])
def test_untouched_race(register: str) -> None:
    """Threads touch pages for the first time while it is looked which are there: every word is what was written."""
    run_child(untouched_race, args=[register], timeout=180)


def share(how: str) -> None:
    """What the children of test_share run."""
    size = 64 * MIB
    limit = 8 * MIB if how == "wrap" else 128 * MIB
    with uswap.Pager(
        limit=limit, pool=256 * MIB, block=64 * KIB, register="early", delays="take:4000"
    ) as pager:
        other = pager.region(MIB)
        view = memoryview(other)
        view[:] = model = random.Random(1).randbytes(MIB)
        other.evict()
        buffer = bytearray(random.Random(2).randbytes(size))
        digest = hash(bytes(buffer))
        lower = threading.Thread(target=setattr, args=(pager, "limit", 8 * MIB))
        pager.wrap(buffer)
        if how == "limit":
            lower.start()
            while pager.stats().limit != 8 * MIB:
                pass
        # Each block takes 2 ms and more to leave; one that comes back does not wait for all of them.
        assert view[: 128 * KIB] == model[: 128 * KIB]
        assert pager.stats().resident > 16 * MIB
        assert view == model
        if how == "limit":
            lower.join()
        while pager.stats().resident > 8 * MIB:
            view[:1] = model[:1]
        stats = pager.stats()
        assert stats.over_limit == 0
        assert stats.peak_resident <= size + MIB + 64 * KIB
        assert hash(bytes(buffer)) == digest
        assert view == model
        pager.check()


@pytest.mark.parametrize("how", ["wrap", "limit"])
def test_share(how: str) -> None:
    """Far above the limit, after a wrap or with a lower limit, a fault waits for its share, and not for all to leave."""
    run_child(share, args=[how], timeout=120)
