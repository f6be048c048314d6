# SPDX-License-Identifier: MIT
"""Regions: sizes, ranges, pins, wrapped buffers, and what users do behind the pager's back."""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import random
import tempfile
import threading
import time
from typing import Any

import numpy as np
import pytest

import uswap

import workload
from child import run_child
from workload import KIB, MIB, PAGE, data, evicted, libc


def raises(kind: type[BaseException], function: Any, *args: Any, **kwargs: Any) -> str:
    """Return the message of what a call raises."""
    try:
        function(*args, **kwargs)
    except kind as e:
        assert type(e) is kind, repr(e)
        return str(e)
    raise AssertionError(f"{function} raised nothing")


def sizes() -> None:
    """What the child of test_sizes runs."""
    rng = random.Random(1)
    for block in (4 * KIB, 16 * KIB, 64 * KIB):
        with uswap.Pager(limit=MIB, pool=16 * MIB, block=block, readahead=0) as pager:
            for n in (1, 4095, 4096, 4097, block - 1, block, block + 1, 3 * block + 5000, 300_001):
                region = pager.region(n)
                view = memoryview(region)
                assert len(region) == len(view) == view.nbytes == n
                assert view == bytes(n)
                model = bytearray(data("random", n, rng))
                view[:] = model
                evicted(region)
                assert view == model
                model[-1] = view[-1] = model[-1] ^ 255
                evicted(region)
                assert view[-1] == model[-1]
                pager.check()  # a fault is served before it is entered in the table
                where = region.residency()
                assert where.length == region.length == -(-n // PAGE) * PAGE
                assert 0 < where.resident <= block, where
                with region.pinned() as pinned:
                    assert pinned == model
                    assert region.residency().resident == region.length
                pager.check()


def test_sizes() -> None:
    """A region has any size from 1 byte on, and its last block may be a short one."""
    run_child(sizes)


def arguments() -> None:
    """What the child of test_arguments runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        n = 25 * PAGE
        region = pager.region(n)
        for call in (region.evict, region.prefetch, lambda *a: region.pinned(*a).__enter__()):
            for args in ((-1,), (n + 1,), (0, n + 1), (5, -1), (n, 1)):
                message = raises(ValueError, call, *args)
                assert "accepted: 0 to" in message, message
            wrong: list[tuple[Any, ...]] = [(1.5,), ("0",), (None,), (True,), (0, 1.5), (0, "1")]
            wrong += [(np.True_,), (0, np.True_), (np.float64(4096),), (0, np.arange(2))]
            for args in wrong:
                message = raises(TypeError, call, *args)
                assert "accepted: int" in message, message
        for args in ((0, 0), (n,), (n, 0), (5, 1), (n - 1, 1)):
            region.evict(*args)
            region.prefetch(*args)
            with region.pinned(*args) as view:
                assert len(view) == min(args[1] if len(args) > 1 else 0, n)
        # Integers of any type; NumPy's narrow ones must not overflow.
        for kind in (np.int64, np.uint8, np.uint64, np.int16):
            args = (kind(200), kind(100))
            region.evict(*args)
            region.prefetch(*args)
            assert region.residency(*args).length == region.block
            region.check(*args)
            region.migrate("pool", *args)
            with region.pinned(*args) as view:
                assert len(view) == 100
            assert len(pager.region(kind(100), block=np.int64(4096), itemsize=kind(8))) == 100
        for size in (0, -1, 1.5, "x", None, True, [1]):
            try:
                pager.region(size)
            except (TypeError, ValueError) as e:
                assert "size" in str(e)
            else:
                raise AssertionError(size)
        for block in (0, 1, 4095, 12_288, 4 * MIB, "5KiB"):
            assert "block" in raises(ValueError, pager.region, 5000, block=block)
        assert "limit" in raises(uswap.LimitError, pager.region, 5000, block=2 * MIB)
        raises(TypeError, region.resize, 5)
        raises(TypeError, region.madvise, mmap.MADV_DONTNEED)
        region.release()
        region.release()
        for call in (region.evict, region.prefetch, region.residency, region.pinned().__enter__):
            raises(uswap.ClosedError, call)
        assert not region.paged
        assert memoryview(region) == bytes(n)
        pager.check()


def test_arguments() -> None:
    """Wrong arguments are refused by a message that names them; empty ranges are right."""
    run_child(arguments)


def pins() -> None:
    """What the child of test_pins runs."""
    rng = random.Random(1)
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        model = bytearray(data("random", 4 * MIB, rng))
        view[:] = model

        def resident() -> int:
            return workload.resident_bytes("self", [(region.address, 256 * KIB)])

        evicted(region)
        assert resident() == 0
        with region.pinned(0, 256 * KIB) as outer:
            assert resident() == 256 * KIB
            assert pager.stats().pinned == 256 * KIB
            with region.pinned(128 * KIB, 256 * KIB) as inner:
                inner[5] = model[128 * KIB + 5] = 5
                for at in range(0, len(view), 1000):  # everything else comes and goes
                    assert view[at] == model[at]
                # What is pinned stands in nobody's way: the rest leaves as ever.
                assert pager.stats().over_limit == 0
                spans = [(region.address, region.length)]
                assert workload.resident_bytes("self", spans) <= MIB
                region.evict()
                assert resident() == 256 * KIB
            region.evict()
            assert resident() == 256 * KIB
            outer[7] = model[7] = 7
            message = raises(uswap.LimitError, region.pinned(0, MIB).__enter__)
            assert "limit" in message
            assert pager.stats().pinned == 256 * KIB
        assert pager.stats().pinned == 0
        evicted(region)
        try:
            with region.pinned(0, 5):
                raise KeyError
        except KeyError:
            pass
        assert pager.stats().pinned == 0
        # The region, or the pager, may go in the middle of it.
        other = pager.region(100_000)
        with other.pinned() as held:
            held[5] = 5
            other.release()
            assert held[5] == 5
        assert pager.stats().pinned == 0
        assert view == model
        pager.check()
        with region.pinned(0, 5) as held:
            pager.close()
            assert held == model[:5]
    assert view == model


def test_pins() -> None:
    """What is pinned stays in, nested or not; more than fits is LimitError; it ends in all cases."""
    run_child(pins)


def moves() -> None:
    """What the child of test_prefetch runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB, readahead=0) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        content = data("random", 4 * MIB, random.Random(1))
        view[:] = content
        evicted(region)
        region.prefetch(MIB, 128 * KIB)
        before = pager.stats().total_faults
        assert view[MIB : MIB + 128 * KIB] == content[MIB : MIB + 128 * KIB]
        assert pager.stats().total_faults == before
        region.prefetch()  # no more than fits
        assert 256 * KIB <= pager.stats().resident <= MIB
        # What was brought in by a read and not changed leaves at no cost.
        taken = pager.stats().evicted_dirty_blocks
        evicted(region)
        assert pager.stats().evicted_dirty_blocks == taken
        where = region.residency(0, 100)
        assert (where.length, where.pooled, where.block) == (4 * KIB, 4 * KIB, 4 * KIB)
        assert view == content


def test_prefetch() -> None:
    """What is prefetched does not fault; unchanged blocks leave again without being taken."""
    run_child(moves)


def evict_in_use() -> None:
    """What the child of test_evict_in_use runs."""
    threads = workload.Threads()
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        content = data("half", 4 * MIB, random.Random(1))
        view[:] = content

        def read(step: int) -> None:
            while not threads.stop.is_set():
                for at in range(0, len(view), step):
                    assert view[at] == content[at]

        for step in (4096, 5000, 16384):
            threads.start(read, step)
        with threads.running():
            end = time.monotonic() + 1
            calls = 0
            while calls < 20 or time.monotonic() < end:
                region.evict()
                region.prefetch(calls * 50_000 % len(view))
                calls += 1
        pager.check()


def test_evict_in_use() -> None:
    """evict() and prefetch() come to an end though other threads keep the whole range busy."""
    run_child(evict_in_use)


def wraps() -> None:
    """What the child of test_wrap runs."""
    rng = random.Random(1)
    n = 300_001
    content = data("random", n + 5000, rng)
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        base = bytearray(content)
        buffers = {
            "bytearray": bytearray(content[:n]),
            "memoryview": memoryview(base)[1234 : 1234 + n],
            "array": array.array("B", content[:n]),
            "ndarray": np.frombuffer(bytearray(content[: n - 1]), np.int16).reshape(1000, -1),
            "mmap": workload.anonymous(n),
            "ctypes": (ctypes.c_char * n).from_buffer(bytearray(content[:n])),
        }
        for name, buffer in buffers.items():
            before = bytes(buffer)
            with pager.wrap(buffer) as region:
                assert region.head + region.length + region.tail == len(before), name
                assert region.head < PAGE
                assert region.tail < PAGE
                evicted(region)
                assert bytes(buffer) == before, name
                evicted(region)
            assert bytes(buffer) == before, name
            assert not region.paged
        pager.check()

        # The export is held: it can neither be freed nor resized.
        grown = bytearray(content)
        region = pager.wrap(grown)
        for change in (lambda: grown.append(1), grown.clear, lambda: grown.extend(b"xx")):
            raises(BufferError, change)
        # No part of it can be wrapped once more, by this pager or another one.
        for again in (grown, memoryview(grown)[100_000:200_000]):
            message = raises(uswap.BufferRefusedError, pager.wrap, again)
            assert f"paged already, by {region!r} of this pager; use that region" in message
            with uswap.Pager(limit=MIB, pool=16 * MIB) as other:
                message = raises(uswap.BufferRefusedError, other.wrap, again)
                assert f"paged already, by {region!r} of another pager, {pager!r};" in message
        own = pager.region(MIB)
        message = raises(uswap.BufferRefusedError, pager.wrap, own)
        assert f"paged already, by {own!r} of this pager" in message
        own.close()
        evicted(region)
        assert grown == content
        del again
        region.release()
        grown.append(1)
        with uswap.Pager(limit=MIB, pool=16 * MIB) as other, other.wrap(grown) as region:
            evicted(region)
            assert grown == content + b"\x01"
        # One that nobody keeps stays paged: the pager holds it.
        evicted(pager.wrap(grown))
        workload.collect()
        assert "re-size" in raises(BufferError, grown.append, 2)
        kept = pager.region_of(grown)
        assert kept in pager.regions
        assert kept.residency().resident == 0
        kept.release()
        grown.append(2)
        assert grown == content + b"\x01\x02"
        assert pager.stats().regions == 0
        pager.check()


def test_wrap() -> None:
    """Buffers of all types are paged where they lie, held meanwhile, wrapped once, and given back."""
    run_child(wraps)


def refused() -> None:
    """What the child of test_wrap_refused runs."""
    shared = mmap.mmap(-1, MIB)
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager, tempfile.TemporaryFile() as file:
        file.truncate(MIB)
        private_file = mmap.mmap(file.fileno(), MIB, access=mmap.ACCESS_COPY)
        locked = workload.anonymous(MIB)
        at = ctypes.addressof(ctypes.c_char.from_buffer(locked))
        libc("mlock", at, 64 * KIB)
        paged = pager.region(MIB)
        objects = np.empty(100_000, object)
        mapped = workload.mappings()
        for buffer in (
            bytes(MIB),
            shared,
            private_file,
            locked,
            np.zeros((1000, 1000))[:, ::2],
            bytearray(10),
            bytearray(0),
            paged,
            objects,
        ):
            message = raises(uswap.BufferRefusedError, pager.wrap, buffer)
            assert "accepted" in message
        for other in (5, "text", None, object()):
            try:
                pager.wrap(other)
            except (TypeError, uswap.BufferRefusedError) as e:
                assert "buffer" in str(e)
            else:
                raise AssertionError(other)
        assert workload.mappings() <= mapped + 3
        assert pager.stats().regions == 1
        libc("munlock", at, 64 * KIB)
        with pager.wrap(locked) as region:
            evicted(region)
        pager.check()


def test_wrap_refused() -> None:
    """What can't be paged is refused with the reason, and nothing is changed."""
    run_child(refused)


def holes() -> None:
    """What the child of test_holes runs."""
    n = 4 * MIB
    with uswap.Pager(limit=MIB, pool=16 * MIB, **OPTIONS) as pager:
        buffer = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        model = bytearray(n)
        for at in range(0, n, 3 * PAGE):  # most pages were never touched
            buffer[at] = model[at] = at % 251 + 1
        with pager.wrap(buffer) as region:
            evicted(region)
            pager.check()
            assert buffer[:] == model
            buffer[5000] = model[5000] = 9
            evicted(region)
            assert buffer[:] == model
        assert buffer[:] == model


OPTIONS: dict[str, Any] = {}


def holes_copied() -> None:
    """The same, taken by copying."""
    OPTIONS["take"] = "copy"
    holes()


@pytest.mark.parametrize("function", [holes, holes_copied])
def test_holes(function: Any) -> None:
    """A wrapped buffer may have pages that were never touched: they are zeros."""
    run_child(function)


def huge() -> None:
    """What the child of test_huge_pages runs."""
    n = 16 * MIB
    made = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.madvise(mmap.MADV_HUGEPAGE)
    content = data("half", n, random.Random(1))
    made[:] = content
    with uswap.Pager(limit=2 * MIB, pool=32 * MIB) as pager, pager.wrap(made) as region:
        evicted(region)
        assert made[:] == content
        made[5] = 5
        assert pager.stats().resident <= 2 * MIB
        evicted(region)
        assert made[6:] == content[6:]
        assert made[5] == 5
        pager.check()
    assert made[6:] == content[6:]


def test_huge_pages() -> None:
    """A buffer of huge pages is paged like any other."""
    run_child(huge)


def advised() -> None:
    """What the child of test_madvise runs."""
    rng = random.Random(1)
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(2 * MIB)
        view = memoryview(region)
        content = data("random", 2 * MIB, rng)
        for evict in (False, True, None):
            view[:] = content
            if evict:
                evicted(region)
            if evict is None:  # some blocks clean, with their copies kept
                evicted(region)
                assert view == content
            at = 256 * KIB + PAGE
            for advice in (mmap.MADV_DONTNEED, 8):  # 8: MADV_FREE
                libc("madvise", region.address + at, 10 * PAGE, advice)
                found = bytes(view)
                for k in range(0, len(found), PAGE):
                    page = found[k : k + PAGE]
                    inside = at <= k < at + 10 * PAGE
                    assert page == content[k : k + PAGE] or (inside and not any(page)), k
                region.evict()
            view[:] = content
            region.evict()
            assert view == content
            pager.check()


def test_madvise() -> None:
    """A user's own MADV_DONTNEED gives zeros or the old bytes; nothing hangs, nothing else changes."""
    run_child(advised)


def unmapped() -> None:
    """What the child of test_munmap runs."""
    with uswap.Pager(limit=MIB, pool=4 * MIB) as pager:
        region = pager.region(2 * MIB)
        other = pager.region(2 * MIB)
        content = data("random", 2 * MIB, random.Random(1))
        memoryview(region)[:] = content
        memoryview(other)[:] = content
        libc("munmap", region.address + MIB, 256 * KIB)
        region.evict()
        assert memoryview(region)[:MIB] == content[:MIB]
        for _ in range(3):
            assert memoryview(other) == content
            region.evict()
            other.evict()
        # Put something there again, so that the region can be let go of.
        libc("mmap", region.address + MIB, 256 * KIB, 3, 0x32, 2**64 - 1, 0)
        region.release()
        assert memoryview(region)[:MIB] == content[:MIB]
        assert memoryview(other) == content


def test_munmap() -> None:
    """A user who unmaps part of a region loses that, and disturbs nothing else."""
    run_child(unmapped)


def direct() -> None:
    """What the child of test_o_direct runs."""
    rng = random.Random(1)
    n = MIB // 2
    content = data("random", 4 * n, rng)
    path = os.path.join(tempfile.gettempdir(), "direct")
    with open(path, "wb") as file:
        file.write(content)
    try:
        try:
            fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError as e:
            print(f'"no O_DIRECT: {e}"')
            return
        threads = workload.Threads()
        with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
            region, other = pager.region(n), pager.region(4 * MIB)
            view = memoryview(region)
            memoryview(other)[:] = data("half", 4 * MIB, rng)

            def thrash() -> None:
                while not threads.stop.is_set():
                    region.evict()
                    bytes(memoryview(other))

            threads.start(thrash)
            with threads.running():
                for k in range(150):
                    at = rng.randrange(2 * n // PAGE) * PAGE
                    assert os.preadv(fd, [view], at) == n
                    assert view == content[at : at + n], k
                    assert os.pwrite(fd, view, 3 * n) == n
                    with open(path, "rb") as file:
                        file.seek(3 * n)
                        assert file.read(n) == content[at : at + n], k
            pager.check()
        os.close(fd)
    finally:
        os.unlink(path)
    print('"ok"')


def test_o_direct() -> None:
    """A device reads into, and writes from, memory that is evicted meanwhile: no byte is lost."""
    if (answer := run_child(direct).json) != "ok":
        pytest.skip(answer)


def deleted() -> None:
    """What the child of test_delete runs."""
    with uswap.Pager(limit=MIB, pool=64 * MIB) as pager:
        content = data("random", 8 * MIB, random.Random(1))
        for k in range(5):
            region = pager.region(8 * MIB)
            view = memoryview(region)
            view[:] = content
            if k % 2:
                evicted(region)
            del region
            assert pager.stats().regions == 1, "a view keeps it"
            assert view[5] == content[5]
            del view
            stats = pager.stats()
            assert (stats.regions, stats.region_bytes, stats.resident) == (0, 0, 0)
            assert stats.pooled == stats.kept == stats.filled == stats.outbox == 0
            pager.check()
            region = pager.region(4096)  # the pager has had a turn, and its figures are new
            evicted(region)
            assert pager.stats().pool_used == 0
            assert pager.stats().pool_allocated < MIB


def test_delete() -> None:
    """A region goes with its last view, and all that it held is free at once."""
    run_child(deleted)


def many() -> None:
    """What the child of test_many_regions runs."""
    with uswap.Pager(limit=MIB, pool=64 * MIB, block=4 * KIB) as pager:
        rng = random.Random(1)
        regions = []
        for k in range(500):
            region = pager.region(rng.choice((1, 5000, 20_000, 100_000)))
            memoryview(region)[0] = k % 256
            regions.append(region)
        del region
        rng.shuffle(order := list(range(500)))
        for k in order[:250]:
            regions[k] = None
        pager.check()
        assert pager.stats().regions == len(pager.regions) == 250
        for k in order[:250]:
            regions[k] = pager.region(30_000)
            memoryview(regions[k])[0] = k % 256
        for k, region in enumerate(regions):
            assert memoryview(region)[0] == k % 256
            region.evict()
        pager.check()
        for k, region in enumerate(regions):
            assert memoryview(region)[0] == k % 256
    for k, region in enumerate(regions):
        assert memoryview(region)[0] == k % 256


def test_many_regions() -> None:
    """Five hundred regions, made and dropped in any order."""
    run_child(many)


def crowd() -> None:
    """What the child of test_one_block runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(16 * KIB)
        view = memoryview(region)
        barrier = threading.Barrier(16)
        threads = workload.Threads()

        def touch(number: int) -> None:
            for k in range(150):
                barrier.wait()
                view[number * 1000] = k
                assert view[number * 1000] == k
                if barrier.wait() == 0:
                    evicted(region)

        for number in range(16):
            threads.start(touch, number)
        threads.join()
        pager.check()


def test_one_block() -> None:
    """Sixteen threads that fault on one block at once all go on, and each finds what it wrote."""
    run_child(crowd)


def sparse() -> None:
    """What the child of test_sparse runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region("64GiB")
        view = memoryview(region)
        model = {}
        rng = random.Random(1)
        for k in range(300):
            at = rng.randrange(len(view))
            view[at] = model[at] = k % 255 + 1
        for at, byte in model.items():
            assert view[at] == byte
    for at, byte in model.items():
        assert view[at] == byte
    spans = [(region.address, region.length)]
    assert workload.resident_bytes("self", spans) <= 301 * 16 * KIB


def test_sparse() -> None:
    """A region may be larger than memory: what was never touched takes none, closing included."""
    run_child(sparse, timeout=120)
