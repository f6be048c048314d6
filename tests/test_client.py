# SPDX-License-Identifier: MIT
"""The life of a pager: arrays, closing, being forgotten, the interpreter's end, a full pool."""

from __future__ import annotations

import random
import signal
import threading
import time
import warnings
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest

import uswap

import workload
from child import run_child
from workload import MIB, data, evicted


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _ends(pid: int) -> bool:
    """Wait for the end of a process that was told to end."""
    end = time.monotonic() + 20
    while not _gone(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return _gone(pid)


def arrays() -> None:
    """What the child of test_arrays runs."""
    rng = np.random.default_rng(1)
    with uswap.Pager(limit=MIB, pool=32 * MIB) as pager:
        a = pager.empty((1000, 500), np.float64)
        assert (a.shape, a.dtype, a.flags.c_contiguous) == ((1000, 500), np.float64, True)
        assert not a.any()
        a[:] = np.arange(500_000).reshape(1000, 500)
        assert a.sum() == 500_000 * 499_999 // 2
        f = pager.zeros((30, 40, 50), "i2", order="F")
        assert f.flags.f_contiguous
        f += 7
        full = pager.full((100_000,), 2.5)
        assert (full == 2.5).all()
        source = np.asfortranarray(rng.random((400, 300)))
        copy = pager.array(source)
        assert copy.flags.f_contiguous
        assert (copy == source).all()
        assert pager.array([1, 2, 3]).tolist() == [1, 2, 3]
        assert pager.empty((0, 5)).shape == (0, 5)
        assert pager.empty(5, "datetime64[s]").shape == (5,)
        for call in (
            lambda: pager.empty(5, object),
            lambda: pager.empty(-1),
            lambda: pager.empty((5, -5)),
            lambda: pager.empty(5, order="X"),
            lambda: pager.empty(2.5),
            lambda: pager.empty((5, 2.0)),
            lambda: pager.empty("5"),
            lambda: pager.empty((True, 5)),
            lambda: pager.zeros(np.True_),
            lambda: pager.full((5, None), 7),
        ):
            with pytest.raises((TypeError, ValueError), match="accepted"):
                call()
        for shape in (np.int64(7), np.uint8(7), [7], (np.int32(7),), np.array([7]), np.array(7)):
            assert pager.empty(shape).shape == (7,)
        # NumPy's own product of these would overflow.
        assert pager.zeros(np.array([200, 200], np.uint8), "u1").nbytes == 40_000
        assert len(pager.region_of(a)) == a.nbytes
        assert len(pager.region_of(a[5:10, ::3].T)) == a.nbytes
        assert len(pager.region_of(memoryview(a))) == a.nbytes
        with pytest.raises(ValueError, match="no region"):
            pager.region_of(source)
        sums = (f.sum(), copy.sum())
        for one in (a, f, full, copy):
            pager.region_of(one).evict()
        order = rng.permutation(500_000)[:20_000]
        assert (a.ravel()[order] == order).all()
        full[::1000] = rng.random(100)
        full.sort()
        assert (np.diff(full) >= 0).all()
        pager.check()
        kept = a[::7, ::3]
        del a
    # They outlive the pager.
    assert kept.sum() == np.arange(500_000).reshape(1000, 500)[::7, ::3].sum()
    assert sums == (f.sum(), copy.sum())
    with pytest.raises(uswap.ClosedError):
        pager.empty(5)


def test_arrays() -> None:
    """Arrays are ordinary ones in every respect, and outlive their pager with every byte."""
    run_child(arrays)


def closing() -> None:
    """What the child of test_close runs."""
    # The first one has modules imported, which stay.
    uswap.Pager(limit=MIB, pool=16 * MIB).close()
    before = workload.descriptors()
    mapped = None
    for _ in range(5):
        pager = uswap.Pager(limit=MIB, pool=16 * MIB)
        pid = pager.pid
        region = pager.region(2 * MIB)
        view = memoryview(region)
        content = data("random", 2 * MIB, random.Random(1))
        view[:] = content
        pager.check()
        pager.close()
        pager.close()
        assert _ends(pid)
        assert view == content
        assert pager.stats().region_bytes == 0
        assert not region.paged
        region.release()
        for call in (pager.check, partial(pager.region, 5), pager.__enter__, region.evict):
            with pytest.raises(uswap.ClosedError):
                call()
        assert "closed" in repr(pager)
        with pytest.raises(BufferError):
            region.close()
        view.release()
        region.close()
        del pager, region, view, call
        workload.collect()
        assert workload.descriptors() == before
        mapped = mapped or workload.mappings()
        assert workload.mappings() <= mapped + 3


def test_close() -> None:
    """close() brings all back and ends the process, may be repeated, and leaves nothing open."""
    assert run_child(closing, python=["-X", "dev"]).stderr == ""


def forgotten() -> None:
    """What the child of test_forgotten runs."""
    content = data("random", 2 * MIB, random.Random(1))
    for cycle in (False, True):
        buffer = workload.anonymous(2 * MIB)
        buffer[:] = content
        pager = uswap.Pager(limit=MIB, pool=16 * MIB)
        pid = pager.pid
        a = pager.array(np.frombuffer(content, np.uint8))
        region = pager.wrap(buffer)
        evicted(region)
        if cycle:
            knot: dict[str, Any] = {"pager": pager, "region": region, "own": pager.region(MIB)}
            knot["knot"] = knot
            memoryview(knot["own"])[5] = 5
            del a, knot
        del region
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del pager
            if not cycle:
                assert not caught, "its array needs it"
                assert a.tobytes() == content
                del a
            workload.collect()
        assert [one.category for one in caught] == [ResourceWarning], [str(one) for one in caught]
        assert "unclosed <uswap.Pager" in str(caught[0].message)
        assert _ends(pid)
        assert buffer[:] == content


def test_forgotten() -> None:
    """A pager that is forgotten warns and is closed, in a reference cycle too; no byte is lost."""
    run_child(forgotten)


def cycles() -> None:
    """What the child of test_cycles runs."""

    class Node:
        pass

    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        buffer = workload.anonymous(MIB)
        content = buffer[:]
        for k in range(200):
            node = Node()
            node.me = node
            node.region = pager.region(100_000)
            node.array = pager.full(1000, k)
            if k % 20 == 0:
                node.wrapped = pager.wrap(buffer)
                node.wrapped.evict()
            memoryview(node.region)[:5] = b"abcde"
            del node
            if k % 20 == 19:
                workload.collect()
                kept = pager.region_of(buffer)  # nobody else has it any more
                assert kept.paged
                kept.release()
        del kept
        workload.collect()
        assert pager.stats().regions == 0
        assert buffer[:] == content
        pager.check()


def read_at_the_end() -> None:
    """What the child of test_cycle_reads runs."""
    read: list[bytes] = []

    class Node:
        def __del__(self) -> None:
            read.append(bytes(self.view))

    content = data("half", MIB, random.Random(4))
    with uswap.Pager(limit=MIB, pool=16 * MIB, register="early") as pager:
        for _ in range(20):
            nodes = [Node(), Node()]
            region = pager.region(MIB)
            for node in nodes:  # a cycle with the region in its midst, finalised in whatever order
                node.nodes, node.region, node.view = nodes, region, memoryview(region)
            nodes[0].view[:] = content
            region.evict()
            region.__dict__["back"] = nodes
            del nodes, node, region
            workload.collect()
        assert pager.stats().regions == 0
    assert read == [content] * 40


def test_cycle_reads() -> None:
    """A finaliser may read a region that is garbage in the same cycle: it ends after all of them."""
    run_child(read_at_the_end)


def test_cycles() -> None:
    """The garbage collector may end regions at any moment, in the middle of a call too."""
    run_child(cycles, env={"PYTHONMALLOC": "debug"})


def threads_at_close(seconds: float) -> None:
    """What the child of test_close_in_use runs."""
    content = data("half", 4 * MIB, random.Random(1))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        threads = workload.Threads()
        buffer = workload.anonymous(4 * MIB)
        with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
            region = pager.region(4 * MIB)
            wrapped = pager.wrap(buffer)
            views = [memoryview(region), memoryview(buffer)]
            for view in views:
                view[:] = content

            def use(
                k: int, views: list[memoryview] = views, stop: threading.Event = threads.stop
            ) -> None:
                mine = content[k * 1000]
                while not stop.is_set():
                    for view in views:
                        for at in range(0, len(view), 9000):
                            assert view[at] == content[at] or at < 4096
                        assert view[k * 1000] == mine
                        mine = mine ^ 1
                        for other in views:
                            other[k * 1000] = mine

            for k in range(4):
                threads.start(use, k)
            time.sleep(0.05)
        assert not wrapped.paged
        time.sleep(0.02)
        threads.join()
        for view in views:
            assert view[4096:] == content[4096:]


def test_close_in_use() -> None:
    """A pager may be closed while threads read and write its memory: they notice nothing."""
    run_child(threads_at_close, args=[2])


EXIT = """
import sys, threading, uswap
sys.modules["__main__"].__dict__.update({"kept": globals()})  # as it would be without a runner
pager = uswap.Pager(limit="1MiB", pool="16MiB")
region = pager.region("4MiB")
view = memoryview(region)
buffer = bytearray(4 << 20)
wrapped = pager.wrap(buffer)
for at in range(0, len(view), 4096):
    view[at] = buffer[at] = at % 251
{more}
print("end")
"""

TOUCH = """
def touch(k):
    while True:
        for at in range(k * 4096, len(view), 4096):
            if view[at] != at % 251 or buffer[at] != at % 251:
                print("WRONG", flush=True)
for k in range(4):
    threading.Thread(target=touch, args=[k], daemon=True).start()
"""


@pytest.mark.parametrize(
    ("more", "noise"),
    [
        ("", ""),
        (TOUCH, ""),
        ("import atexit; atexit.register(lambda: print(len(bytes(view)), buffer[4096]))", ""),
        ("sys.modules['keep'] = (pager, region, view)", ""),
        ("pager.close()", ""),
        (
            "del pager, region, view, wrapped\nimport gc; gc.collect()",
            "ResourceWarning: unclosed <uswap.Pager",
        ),
    ],
    ids=["open", "threads", "atexit", "kept", "closed", "forgotten"],
)
@pytest.mark.parametrize("python", [[], ["-X", "dev"]], ids=["", "dev"])
def test_interpreter_exit(more: str, noise: str, python: list[str]) -> None:
    """The interpreter ends as it would without a pager: at once, in silence, with its own status."""
    for _ in range(3):
        result = run_child(EXIT.replace("{more}", more), python=python, timeout=30)
        assert result.stdout.splitlines()[0] == "end", result
        assert "WRONG" not in result.stdout
        if noise and python:
            assert noise in result.stderr, result
        else:
            assert result.stderr == "", result


def test_status() -> None:
    """An exception or sys.exit() inside of the with block ends the program as it should."""
    result = run_child(
        """
        import sys, uswap
        with uswap.Pager(limit="1MiB", pool="16MiB") as pager:
            a = pager.full(100_000, 5)
            sys.exit(7)
        """,
        check=False,
        python=["-X", "dev"],
    )
    assert (result.returncode, result.stderr) == (7, "")


def many_pagers() -> None:
    """What the child of test_many_pagers runs."""
    content = data("half", 300_000, random.Random(1))
    pagers = [uswap.Pager(limit=MIB, pool=4 * MIB, workers=1) for _ in range(20)]
    assert len({pager.pid for pager in pagers}) == 20
    arrays = [pager.array(np.frombuffer(content, np.uint8)) for pager in pagers]
    for pager, a in zip(pagers, arrays, strict=True):
        evicted(pager.region_of(a))
    for pager, a in zip(pagers[::2], arrays[::2], strict=True):
        assert a.tobytes() == content
        pager.close()
    for pager, a in zip(pagers, arrays, strict=True):
        assert a.tobytes() == content
        pager.close()
    for a in arrays:
        assert a.tobytes() == content


def test_many_pagers() -> None:
    """Twenty pagers at once, closed in another order."""
    run_child(many_pagers)


def one_line() -> None:
    """What the child of test_paged runs."""
    a, b = np.arange(500_000), bytearray(data("random", MIB, random.Random(1)))
    before = a.copy(), bytes(b)
    with uswap.paged(a, b, limit="1MiB", pool="16MiB") as paged:
        assert len(paged.regions) == 2
        assert paged.pager.region_of(a) is paged.regions[0]
        for region in paged.regions:
            evicted(region)
        assert (a == before[0]).all()
        assert b == before[1]
        a += 1
    assert (a == before[0] + 1).all()
    assert b == before[1]
    # A fraction of whatever kind is one of the buffers.
    for half in (0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2), "0.5"):
        with uswap.paged(a, limit=half, pool="16MiB") as paged:
            assert paged.pager.limit == a.nbytes // 2, half
    for wrong in (1.5, 0.0, True, "x"):
        with pytest.raises((TypeError, ValueError), match="limit="), uswap.paged(a, limit=wrong):
            pass
    b.append(1)
    with pytest.raises(uswap.BufferRefusedError), uswap.paged(b, bytes(MIB), limit="1MiB"):
        pass
    b.append(1)  # it was let go of
    with pytest.raises(KeyError), uswap.paged(a, limit="1MiB", pool="16MiB"):
        raise KeyError
    assert (a == before[0] + 1).all()


def test_paged() -> None:
    """paged() pages what exists for the length of a block, and lets go of it in all cases."""
    run_child(one_line, python=["-X", "dev"])


def full_pool() -> dict[str, Any]:
    """What the child of test_full_pool runs."""
    rng = random.Random(1)
    with uswap.Pager(limit=MIB, pool=2 * MIB) as pager:
        region = pager.region(8 * MIB)
        view = memoryview(region)
        model = bytearray(data("random", 8 * MIB, rng))
        view[:] = model  # 8 MiB that do not compress have no place in 3
        stats = pager.stats()
        assert stats.resident > 4 * MIB
        assert stats.refused_noroom > 0
        assert stats.over_limit > 0
        region.evict()
        assert view == model
        threads = workload.Threads()

        def use(k: int) -> None:
            mine = random.Random(k)
            while not threads.stop.is_set():
                at = mine.randrange(len(view) // 4 // 5000) * 20_000 + k * 5000
                view[at : at + 5000] = model[at : at + 5000] = data("random", 5000, mine)
                at = mine.randrange(len(view) // 4 // 5000) * 20_000 + k * 5000
                assert view[at : at + 5000] == model[at : at + 5000]

        for k in range(4):
            threads.start(use, k)
        with threads.running():
            threads.stop.wait(1)
        assert view == model
        pager.check()
        # A region that is dropped while nothing has room goes all the same.
        extra = pager.region(2 * MIB)
        memoryview(extra)[:] = data("random", 2 * MIB, rng)
        del extra
        assert pager.stats().regions == 1
        assert view == model
        # Room appears: what is there now compresses.
        small = data("text", 4 * MIB, rng)
        view[4 * MIB :] = model[4 * MIB :] = small
        view[: 3 * MIB] = model[: 3 * MIB] = bytes(3 * MIB)
        end = time.monotonic() + 20
        while pager.stats().resident > MIB and time.monotonic() < end:
            assert view[rng.randrange(len(view))] is not None
            time.sleep(0.01)
        assert pager.stats().resident <= MIB
        assert view == model
        pager.check()
    assert view == model
    return {}


def test_full_pool() -> None:
    """Where nothing has room data stays, with one message; when there is room, it leaves again."""
    result = run_child(full_pool)
    assert result.stderr.count("uswap: the pool is full") == 1, result
    assert len(result.stderr.splitlines()) == 1, result


def interrupted() -> None:
    """What the child of test_interrupted runs."""

    def handler(_number: int, _frame: object) -> None:
        counts[0] += 1
        bytes(view[rng.randrange(len(view)) :][:5000])

    counts = [0]
    rng = random.Random(1)
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        content = data("half", 4 * MIB, rng)
        view[:] = content
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        while counts[0] < 100:
            region.evict()
            assert view == content
        signal.setitimer(signal.ITIMER_REAL, 0)
        pager.check()


def test_signals() -> None:
    """Signals may arrive in the middle of faults and of calls, and their handlers may fault."""
    run_child(interrupted)


def idle() -> dict[str, float]:
    """What the child of test_idle runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        for at in range(0, len(view), 4096):
            view[at] = at % 251
        region.evict()
        processes = [psutil.Process(pager.pid), psutil.Process()]
        time.sleep(0.3)
        before = [sum(one.cpu_times()[:2]) for one in processes]
        time.sleep(1)
        used = [sum(one.cpu_times()[:2]) - b for one, b in zip(processes, before, strict=True)]
        rss = processes[0].memory_full_info().uss
    return {"cpu": max(used), "uss": rss}


def test_idle() -> None:
    """A pager with nothing to do uses no CPU, and takes at most 40 MiB for itself."""
    found = run_child(idle).json
    assert found["cpu"] <= 0.05
    assert found["uss"] <= 40 * MIB


def threads_of_all_kinds() -> None:
    """What the child of test_calls_from_threads runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        threads = workload.Threads()

        def make(k: int) -> None:
            rng = random.Random(k)
            while not threads.stop.is_set():
                region = pager.region(rng.randrange(1, 500_000))
                view = memoryview(region)
                content = data("half", len(view), rng)
                view[:] = content
                region.evict()
                pager.stats()
                region.residency()
                with region.pinned(0, min(region.length, 20_000)):
                    assert view == content
                if rng.random() < 0.3:
                    region.release()
                    assert view == content

        for k in range(6):
            threads.start(make, k)
        with threads.running():
            threads.stop.wait(1.5)
        workload.collect()
        assert pager.stats().regions == 0
        pager.check()


def test_calls_from_threads() -> None:
    """Any thread may call anything at any time."""
    run_child(threads_of_all_kinds)


# ---- closed with more in use than fits


def left_open(how: str) -> None:
    """What the children of test_left_open run."""
    import uswap.client
    from uswap.sizes import AvailableMemory

    size = 8 * MIB
    content = data("half", size, random.Random(3))
    uswap.client.free_memory = lambda: AvailableMemory(40 * MIB, "a test")  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        buffer = workload.anonymous(size)
        buffer[:] = content
        with uswap.Pager(limit=MIB, pool=16 * MIB, register="early") as pager:
            a = pager.array(np.frombuffer(content, np.uint8))
            if how == "wrap":
                pager.wrap(buffer)
            if how == "restore":
                pager.close(restore=True)
            elif how == "discard":
                pager.close(discard=True)
        pid = pager.pid
    said = [str(one.message) for one in caught]
    if how in ("restore", "discard"):
        assert not said, said
        assert _ends(pid)
        if how == "restore":
            assert a.tobytes() == content
        else:
            a[5]  # ends the process
        return
    assert len(said) == 1, said
    assert "goes on serving" in said[0]
    assert issubclass(caught[0].category, uswap.StillPagedWarning)
    assert not _gone(pid)
    for _ in range(3):  # within the limit
        assert a.tobytes() == content
        a[:] = np.frombuffer(content, np.uint8)
        assert pager.stats().resident <= MIB
    for make in (pager.region, pager.empty):
        try:
            make(MIB)
        except uswap.ClosedError:
            pass
        else:
            raise AssertionError(make)
    pager.check()
    pager.limit = "2MiB"
    region = pager.region_of(buffer) if how == "wrap" else None
    del pager
    workload.collect()
    assert a.tobytes() == content
    del a
    workload.collect()
    if region is not None:
        assert buffer[:] == content
        assert not _gone(pid)
        region.release()
        assert buffer[:] == content
        del region
        workload.collect()
    assert _ends(pid)


@pytest.mark.parametrize("how", ["array", "wrap", "restore"])
def test_left_open(how: str) -> None:
    """What does not fit when a pager is closed goes on being served within the limit, until its end."""
    run_child(left_open, args=[how])


def test_discard() -> None:
    """What was discarded is never read as zeros."""
    result = run_child(left_open, args=["discard"], check=False)
    assert result.returncode == -signal.SIGSEGV, result


# ---- limits that change


def changed_limits() -> None:
    """What the child of test_limits_change runs."""
    content = data("half", 8 * MIB, random.Random(3))
    with uswap.Pager(limit=8 * MIB, pool=8 * MIB, swapfile="/var/tmp", swap="32MiB") as pager:
        a = pager.array(np.frombuffer(content, np.uint8))
        for limit in (4 * MIB, "2MiB", 8 * MIB, "1MiB", 3 * MIB):
            pager.limit = limit
            stats = pager.stats()
            assert stats.limit == pager.limit == pager.options.limit
            assert stats.resident <= pager.limit, limit
            assert a.tobytes() == content
            assert pager.stats().resident <= pager.limit
            pager.check()
        for wrong in (0, 1000, "64KiB", -1, "much", 2.0, None):
            try:
                pager.limit = wrong  # type: ignore[assignment]
            except (ValueError, TypeError) as e:
                assert "limit" in str(e), e
                assert "accepted" in str(e), e
            else:
                raise AssertionError(wrong)
        assert pager.limit == 3 * MIB
        pager.limit = "1MiB"
        pager.region_of(a).evict()
        for pool in (4 * MIB, "2MiB", 8 * MIB, "1MiB"):
            pager.pool = pool
            stats = pager.stats()
            assert stats.pool_budget == pager.pool
            assert stats.pool_allocated <= pager.pool, (pool, stats.pool_allocated)
            assert a.tobytes() == content
            pager.check()
        for wrong in (16 * MIB, 100, "x"):
            try:
                pager.pool = wrong
            except (ValueError, TypeError) as e:
                assert "pool" in str(e), e
                assert "accepted" in str(e), e
            else:
                raise AssertionError(wrong)
        assert pager.swap == 32 * MIB
        try:
            pager.swap = 1  # type: ignore[misc]
        except AttributeError:
            pass
        a[:] = 7
        assert a.min() == 7
        pager.check()


def test_limits_change() -> None:
    """Limit and pool may be changed while the pager runs, up and down, and hold."""
    run_child(changed_limits)


def small_pool(block: str, pool: str) -> None:
    """What the child of test_small_pool runs."""
    content = data("random", MIB, random.Random(1))
    with uswap.Pager(limit=MIB, pool=pool, block=block) as pager:
        region = pager.region(MIB)
        view = memoryview(region)
        view[:] = content
        region.evict()
        stats = pager.stats()
        assert stats.resident + stats.pooled == MIB, stats
        assert stats.refused_noroom > 0
        assert view == content
        pager.check()


@pytest.mark.parametrize("block", ["4KiB", "64KiB"])
@pytest.mark.parametrize("pool", ["64KiB", "128KiB"])
def test_small_pool(block: str, pool: str) -> None:
    """A pool that can't hold one block, or few, keeps nothing waiting: what finds no room stays resident."""
    run_child(small_pool, args=[block, pool], timeout=60)
