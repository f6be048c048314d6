# SPDX-License-Identifier: MIT
"""fork: paged memory is the parent's alone, and the parent goes on as if nothing had been."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings

import pytest

import uswap

import workload
from child import run_child
from workload import KIB, MIB, data, evicted

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def touch_in_child(how: str) -> None:
    """What the children of test_touch_in_child run."""
    buffer = workload.anonymous(2 * MIB)
    content = bytes(buffer)
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(2 * MIB) if how != "wrapped" else pager.wrap(buffer)
        view = region._view()
        view[:] = content
        region.evict(MIB)
        at = {"evicted": MIB + 5, "resident": 5, "wrapped": MIB + 5}[how]
        if how == "resident":
            region.prefetch(0, 64 * KIB)
            assert view[at] == content[at]
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os._exit(1 if view[at] == 0 else 2)  # zeros: the worst there could be
        assert _wait(pid) == -signal.SIGSEGV
        assert view == content
        pager.check()


@pytest.mark.parametrize("how", ["evicted", "resident", "wrapped"])
def test_touch_in_child(how: str) -> None:
    """A forked child that touches a region gets SIGSEGV, never zeros; the parent goes on."""
    run_child(touch_in_child, args=[how])


def told() -> None:
    """What the child of test_told runs."""
    pager = uswap.Pager(limit=MIB, pool=16 * MIB, register="early")
    regions = [pager.region(2 * MIB) for _ in range(3)]
    for region in regions:
        memoryview(region)[:5] = b"abcde"
    print(regions[1]._id, regions[1].address)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        memoryview(regions[1])[MIB + 7]
        os._exit(0)
    assert _wait(pid) == -signal.SIGSEGV
    assert bytes(memoryview(regions[1])[:5]) == b"abcde"
    pager.close()


@pytest.mark.parametrize("handler", ["1", None])
def test_told(handler: str | None) -> None:
    """A child that touches a region says which one, and what to do, before it ends; faulthandler has its say too."""
    result = run_child(told, env={"PYTHONFAULTHANDLER": handler})
    number, address = map(int, result.stdout.split())
    said = [line for line in result.stderr.splitlines() if line.startswith("uswap: ")]
    assert len(said) == 1, result
    assert f"touches region {number} of its parent (address {address + MIB + 7:#x}, " in said[0]
    assert "start workers by spawn" in said[0]
    assert ("Segmentation fault" in result.stderr) == (handler is not None), result


def child_works() -> None:
    """What the child of test_child_works runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        content = workload.anonymous(4 * MIB)[:]
        view[:] = content
        reader, writer = os.pipe()
        # Its thread is not there in a forked child, whose end would wait for it.
        faulthandler.cancel_dump_traceback_later()
        pid = os.fork()
        if pid == 0:
            failed = []
            for call in (
                pager.stats,
                pager.check,
                lambda: pager.region(4096),
                lambda: pager.wrap(bytearray(100_000)),
                lambda: pager.__enter__(),
                region.evict,
                region.prefetch,
                region.residency,
                lambda: region.pinned().__enter__(),
            ):
                try:
                    call()
                    failed.append(call)
                except uswap.ClosedError:
                    pass
            pager.close()
            region.release()
            # A pager of its own works.
            with uswap.Pager(limit=MIB, pool=16 * MIB) as own:
                mine = own.region(2 * MIB)
                memoryview(mine)[:] = content[: 2 * MIB]
                evicted(mine)
                assert memoryview(mine) == content[: 2 * MIB]
            os.write(writer, b"ok" if not failed else repr(failed).encode())
            del region, pager, view
            sys.exit(0)  # by way of all finalisers
        assert _wait(pid) == 0
        assert os.read(reader, 100) == b"ok"
        assert view == content
        pager.check()


def test_child_works() -> None:
    """A forked child that touches no region works; the parent's pager says ClosedError to it."""
    assert run_child(child_works, python=["-X", "dev"]).stderr == ""


def in_pool(n: int) -> int:
    """What the processes of test_multiprocessing run."""
    return sum(range(n))


def pools(method: str) -> None:
    """What the children of test_multiprocessing run."""
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(2 * MIB)
        view = memoryview(region)
        content = workload.anonymous(2 * MIB)[:]
        view[:] = content
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(in_pool, [10, 100, 1000]) == [45, 4950, 499500]
            assert view == content
        assert view == content


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method: str) -> None:
    """multiprocessing works while memory is paged."""
    if method == "spawn":
        pytest.importorskip("multiprocessing.spawn")
        run_child(
            "import test_fork\nif __name__ == '__main__': test_fork.pools('spawn')",
            env={"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *_python_path()])},
        )
    else:
        run_child(pools, args=[method])


def _python_path() -> list[str]:
    given = os.environ.get("PYTHONPATH")
    return given.split(os.pathsep) if given else []


def busy_parent() -> None:
    """What the child of test_busy_parent runs."""
    threads = workload.Threads()
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        content = workload.anonymous(4 * MIB)[:]
        view[:] = content

        def read() -> None:
            while not threads.stop.is_set():
                for at in range(0, len(view), 100_000):
                    assert view[at : at + 5000] == content[at : at + 5000]

        for _ in range(2):
            threads.start(read)
        with threads.running():
            for k in range(15):
                assert subprocess.run(["true"], check=False).returncode == 0
                pid = os.fork()
                if pid == 0:
                    os._exit(k)
                assert _wait(pid) == k
        pager.check()


def test_busy_parent() -> None:
    """fork and subprocess work while other threads fault."""
    run_child(busy_parent)


def shared_pages() -> None:
    """What the child of test_shared_pages runs."""
    buffer = workload.anonymous(4 * MIB)
    content = bytes(buffer)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:  # lives, and shares the buffer's pages with the parent
        os.close(writer)
        os.read(reader, 1)
        os._exit(0 if buffer[:] == content else 1)
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        with pager.wrap(buffer) as wrapped:
            # The kernel refuses to move a page that is shared with a child until it has been unshared.
            region = pager.region(2 * MIB)
            view = memoryview(region)
            view[:] = content[: 2 * MIB]
            assert view == content[: 2 * MIB]
            wrapped.evict()
            if pager.about()["take"] == "move":
                assert wrapped.residency().resident == 0
                assert pager.stats().refused_pinned == 0
            assert buffer[:] == content
            changed = data("text", 4 * MIB, workload.random.Random(1))
            memoryview(buffer)[:] = changed
            evicted(wrapped)
            assert buffer[:] == changed
            pager.check()
            assert view == content[: 2 * MIB]
        assert buffer[:] == changed
    os.write(writer, b"x")
    assert _wait(pid) == 0, "the child saw what the parent wrote"


def test_shared_pages() -> None:
    """Pages shared with a living child leave as others do, and the child is untouched."""
    run_child(shared_pages)
