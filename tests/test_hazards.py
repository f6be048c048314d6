# SPDX-License-Identifier: MIT
"""What other code of the process, the kernel or a user does to paged memory: no byte lost, nobody left waiting."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import uswap

from child import run_child
from workload import KIB, MIB, libc

KSM = Path("/sys/kernel/mm/ksm")
MADV_MERGEABLE, MADV_UNMERGEABLE = 12, 13
PR_SET_MEMORY_MERGE = 67


def content(n: int) -> bytes:
    """Bytes that no page of zeros can be taken for."""
    return random.Random(5).randbytes(n)


# ---- a block of which only a part can leave


def part_stays(take: str, how: str, written: bool) -> None:
    """What the children of test_part_stays run."""
    block, n = 64 * KIB, MIB
    data = bytearray(content(n))
    with uswap.Pager(
        limit="8MiB", pool="16MiB", block=block, take=take, register="early", readahead=0
    ) as pager:
        region = pager.region(n)
        view = memoryview(region)
        view[:] = data
        region.evict()
        assert view == data  # clean, with a copy in the pool
        middle = 5 * block + 8 * mmap.PAGESIZE
        if written:
            view[middle] ^= 255
            data[middle] ^= 255
        gone = range(0)
        if how == "mlock":
            libc("mlock", region.address + middle, mmap.PAGESIZE)
        elif how == "mlock2":
            libc("mlock2", region.address + middle, 2 * mmap.PAGESIZE, 1)  # MLOCK_ONFAULT
        else:
            libc("munmap", region.address + middle, mmap.PAGESIZE)
            gone = range(middle, middle + mmap.PAGESIZE)
        for _ in range(3):
            region.evict()
            for at in range(0, n, mmap.PAGESIZE):
                if at not in gone:
                    page = slice(at, at + mmap.PAGESIZE)
                    assert view[page] == data[page], (take, how, written, hex(at))
        pager.check()
        if how != "munmap":  # what stayed is still seen to be written
            view[middle + 1] ^= 255
            data[middle + 1] ^= 255
            libc("munlock", region.address, n)
            region.evict()
            assert view == data
        view.release()
        if gone:
            os._exit(0)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("how", ["mlock", "mlock2", "munmap"])
@pytest.mark.parametrize("take", ["move", "copy"])
def test_part_stays(take: str, how: str, written: bool) -> None:
    """madvise that fails half-way has given pages back: they are served, and what stayed is."""
    run_child(part_stays, args=[take, how, written])


# ---- a region of which the program unmaps a part, or all


def unmapped_part(first: int, last: int, take: str) -> None:
    """What the children of test_unmapped_part run."""
    n = 4 * MIB
    data = content(n)
    options = {"limit": MIB, "pool": MIB, "swapfile": "/tmp", "swap": "16MiB", "segment": "256KiB"}
    for out in (False, True):
        address = libc("mmap", 0, n, mmap.PROT_READ | mmap.PROT_WRITE, 0x22, 2**64 - 1, 0)
        ctypes.memmove(address, data, n)
        buffer = (ctypes.c_char * n).from_address(address)
        with uswap.Pager(block="16KiB", take=take, **options) as pager:
            region = pager.wrap(buffer)
            if out:
                region.evict()
            libc("munmap", address + first, last - first)
            region.release()
        rest = [(0, first), (last, n)]
        assert all(ctypes.string_at(address + a, b - a) == data[a:b] for a, b in rest)


@pytest.mark.parametrize("take", ["move", "copy"])
@pytest.mark.parametrize(
    ("first", "last"), [(0, 4 * MIB), (0, 2 * MIB + 4096), (5 * 4096, 2 * MIB), (MIB, 4 * MIB)]
)
def test_unmapped_part(first: int, last: int, take: str) -> None:
    """Memory that is unmapped while it is in the pool or in the file keeps nothing waiting, and the rest is right."""
    run_child(unmapped_part, args=[first, last, take], timeout=60)


# ---- a waiter whose page goes


def unmapped(replaced: bool) -> None:
    """What the children of test_unmapped_waiter run."""
    memory, n, rounds = ctypes.CDLL(None), 64 * KIB, 6
    memory.mmap.restype = ctypes.c_void_p
    pager = uswap.Pager(
        limit="4MiB", pool="8MiB", delays="serve:300000", register="early", readahead=0
    )
    region = pager.region(1 * MIB)
    view = memoryview(region)
    view[:] = content(MIB)
    region.evict()
    hung = 0
    for k in range(rounds):
        address = region.address + k * n

        def write(address: int = address) -> None:
            memory.memset(ctypes.c_void_p(address), 7, ctypes.c_size_t(10))

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        time.sleep(0.02)
        if replaced:  # so that the writer can go on
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
            memory.mmap(ctypes.c_void_p(address), ctypes.c_size_t(n), 3, flags, -1, 0)
        writer.join(5)
        hung += writer.is_alive()
    assert hung == 0, hung
    os._exit(0)


def test_unmapped_waiter() -> None:
    """A thread that waits for a page which is then unmapped is woken, and meets what is there."""
    run_child(unmapped, args=[True])


# ---- KSM


def scan(times: int) -> None:
    """Waits until KSM has scanned all it may merge that many times."""
    scans = int((KSM / "full_scans").read_text())
    end = time.monotonic() + 20
    while int((KSM / "full_scans").read_text()) < scans + times and time.monotonic() < end:
        time.sleep(0.02)


def merged(how: str) -> None:
    """What the children of test_ksm run."""
    pages, page = 64, content(mmap.PAGESIZE)
    names = ("run", "pages_to_scan", "sleep_millisecs", "smart_scan")
    before = {name: (KSM / name).read_text() for name in names if (KSM / name).exists()}
    if how == "prctl" and ctypes.CDLL(None).prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        print("skip")
        return
    try:
        with uswap.Pager(
            limit="8MiB", pool="16MiB", block="4KiB", register="early", readahead=0
        ) as pager:
            region = pager.region(pages * mmap.PAGESIZE)
            view = memoryview(region)
            view[:] = page * pages
            region.evict()
            assert view == page * pages  # clean
            if how != "prctl":
                libc("madvise", region.address, len(view), MADV_MERGEABLE)
            for name, value in zip(names, ("1", "4000", "5", "0"), strict=True):
                if name in before:
                    (KSM / name).write_text(value)
            scan(4)
            if how == "and back":
                libc("madvise", region.address, len(view), MADV_UNMERGEABLE)
                scan(4)
                if Path("/proc/self/ksm_stat").exists():
                    assert "ksm_rmap_items 0\n" in Path("/proc/self/ksm_stat").read_text()
            (KSM / "run").write_text("0")
            for k in range(pages):
                view[k * mmap.PAGESIZE] ^= 255
            want = bytes(view)
            region.evict()
            assert view == want, "a write is lost"
            pager.check()
            view.release()
    finally:
        for name, value in before.items():
            (KSM / name).write_text(value)


@pytest.mark.parametrize("how", ["madvise", "and back", "prctl"])
def test_ksm(how: str) -> None:
    """Pages that KSM merges lose their write protection; no write is lost by that, also when they are no longer merged."""
    if os.geteuid() or not (KSM / "full_scans").exists():
        pytest.skip("needs root and KSM")
    run_child(merged, args=[how])


# ---- stderr that can't be written

SAYS = """
    import os, random, sys, threading
    import uswap
    out = os.fdopen(os.dup(1), "w")
    data = random.Random(1).randbytes(1 << 20)
    with uswap.Pager(limit="1MiB", pool="1MiB", block="4KiB", readahead=0,
                     delays="status:3000,compress:3000") as pager:
        region = pager.region("8MiB")
        view = memoryview(region)
        def fill(k):
            view[k << 20 : (k + 1) << 20] = data
        threads = [threading.Thread(target=fill, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pager.stats().refused_noroom > 0
        assert view == data * 8
        pager.check()
        print("right", file=out, flush=True)
        os._exit(0)
"""


@pytest.mark.parametrize("how", ["reader gone", "full pipe", "/dev/full", "closed"])
def test_stderr(how: str) -> None:
    """What the pager says is lost where stderr can't be written; no event of the same batch is."""
    import textwrap

    inner = textwrap.dedent(SAYS)
    code = f"""
        import fcntl, os, subprocess, sys
        how, inner = {how!r}, {inner!r}
        kwargs = {{}}
        if how == "/dev/full":
            kwargs["stderr"] = open(how, "w")
        elif how == "closed":
            kwargs["preexec_fn"] = lambda: os.close(2)
        else:
            reader, writer = os.pipe()
            kwargs["stderr"] = writer
            if how == "reader gone":
                os.close(reader)
            else:
                os.set_blocking(writer, False)
                try:
                    while True:
                        os.write(writer, bytes(4096))
                except BlockingIOError:
                    os.set_blocking(writer, True)
        for _ in range(3):
            done = subprocess.run([sys.executable, "-c", inner], stdout=subprocess.PIPE, timeout=50, **kwargs)
            assert done.stdout == b"right\\n", done
    """
    run_child(code, timeout=170)


# ---- the pager is gone, or seems to be


def hole() -> None:
    """What the child of test_killed_in_a_hole runs."""
    buffer = mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, len(buffer), 64 * KIB):
        buffer[at] = 1
    pager = uswap.Pager(limit="80MiB", pool="16MiB", block="64KiB", register="early")
    region = pager.wrap(buffer)
    threading.Thread(target=region.evict, daemon=True).start()
    time.sleep(random.uniform(0.005, 0.05))
    os.kill(pager.pid, signal.SIGKILL)
    time.sleep(20)
    print("alive")


def test_killed_in_a_hole() -> None:
    """The pager is killed while the mover stands in a fault: the client ends all the same."""
    for _ in range(5):
        result = run_child(hole, check=False, timeout=40)
        assert result.returncode == -signal.SIGABRT, result
        assert "the pager process has ended" in result.stderr, result


def closed() -> None:
    """What the child of test_descriptors_closed runs."""
    pager = uswap.Pager(limit="2MiB", pool="32MiB")
    n = 8 * MIB
    data = content(n)
    region = pager.region(n)
    view = memoryview(region)
    view[:] = data
    region.evict()
    os.closerange(3, 256)
    for _ in range(20):
        if hashlib.sha256(view).digest() != hashlib.sha256(data).digest():
            print("wrong", flush=True)
        view[:] = data
    time.sleep(20)


def test_descriptors_closed() -> None:
    """Other code closes all descriptors: the process ends, and says that this is why."""
    result = run_child(closed, check=False, timeout=50)
    assert result.returncode == -signal.SIGABRT, result
    assert "descriptors of uswap were closed" in result.stderr, result
    assert result.stdout == "", result


# ---- a stopped process

STOPPED = """
    import hashlib, os, random, sys
    import uswap
    data = random.Random(2).randbytes(16 << 20)
    pager = uswap.Pager(limit="4MiB", pool="32MiB", faults="message")
    region = pager.region(len(data))
    view = memoryview(region)
    view[:] = data
    print(region.address, hashlib.sha256(data).hexdigest(), flush=True)
    sys.stdin.readline()
    assert view == data
    region.evict()
    assert pager.stats().over_limit > 0 and pager.stats().resident <= 4 << 20
    pager.close()
"""


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def read_stopped(code: str) -> None:
    """What the child of test_stopped_is_read runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    address, want = process.stdout.readline().split()
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.1)
    try:
        read, got = ctypes.CDLL(None).process_vm_readv, hashlib.sha256()
        read.restype = ctypes.c_ssize_t
        buffer = ctypes.create_string_buffer(MIB)
        for at in range(int(address), int(address) + 16 * MIB, MIB):
            ours = _Vector(ctypes.addressof(buffer), MIB)
            theirs = _Vector(at, MIB)
            assert read(process.pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0) == MIB
            got.update(buffer.raw)
        assert got.hexdigest() == want
    finally:
        os.kill(process.pid, signal.SIGCONT)
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


def test_stopped_is_read() -> None:
    """A process is stopped, and another one reads its memory: the limit gives way, and no byte is wrong.

    With inline faults the reader is told EFAULT of what is out.
    """
    import textwrap

    if os.geteuid():
        pytest.skip("needs root, for a full userfaultfd")
    run_child(read_stopped, args=[textwrap.dedent(STOPPED)])


# ---- the ring is overwritten


def scribbled(what: str) -> None:
    """What the children of test_ring_scribbled run."""
    pager = uswap.Pager(
        limit="4MiB", pool="16MiB", block="64KiB", delays="status:2000", register="early"
    )
    region = pager.region(4 * MIB)
    view = memoryview(region)
    view[:] = content(4 * MIB)
    with open("/proc/self/maps") as maps:
        ring = next(
            int(line.split("-")[0], 16)
            for line in maps
            if "uswap-space" in line and "rw-s 00000000 " in line
        )
    commands, stop = ring + 320, threading.Event()
    offset, value = {"length": (16, 0x40000000), "slot": (20, 0x00FFFF00), "op": (0, 77)}[what]

    def scribble() -> None:
        while not stop.is_set():
            for k in range(64):
                ctypes.c_uint32.from_address(commands + 32 * k + offset).value = value

    threading.Thread(target=scribble, daemon=True).start()
    sys.setswitchinterval(1e-4)
    region.evict()
    stop.set()
    assert Path(f"/proc/{pager.pid}/stat").read_text().split()[2] != "Z"
    pager.check()
    os._exit(0)


@pytest.mark.parametrize("what", ["length", "slot", "op"])
def test_ring_scribbled(what: str) -> None:
    """A stray write of the client into the ring neither ends the pager nor makes the mover touch other memory."""
    run_child(scribbled, args=[what])


# ---- a region that is much larger than what of it is touched


def sparse() -> None:
    """What the child of test_sparse runs."""

    def taken(pid: int) -> int:
        fields = Path(f"/proc/{pid}/status").read_text().split()
        return sum(
            int(fields[k + 1]) for k, name in enumerate(fields) if name in ("RssShmem:", "RssAnon:")
        )

    with uswap.Pager(limit="64MiB", pool="64MiB", block="4KiB") as pager:
        big = pager.region("512GiB")
        view = memoryview(big)
        touched = range(0, len(view), 32 << 30)
        for k, at in enumerate(touched):
            view[at] = k + 1
        before = taken(pager.pid)
        big.evict()
        big.prefetch()
        big.check(0, MIB)
        assert [view[at] for at in touched] == list(range(1, len(touched) + 1))
        assert big.residency(0, MIB).length == MIB
        pager.check()
        view.release()
        big.release()
        with memoryview(big) as view:
            assert [view[at] for at in touched] == list(range(1, len(touched) + 1))
        pager.check()
        assert pager.stats().regions == 0
        assert taken(pager.pid) < before + (16 << 10), "KiB: the table was read"


def test_sparse() -> None:
    """No call looks at the entries of blocks that were never touched: to read them is to give them memory."""
    run_child(sparse)


# ---- threads that Python did not start


def foreign_threads(n: int) -> None:
    """What the child of test_foreign_threads runs: threads of C's own call in, and fault."""
    failed: list[str] = []
    with uswap.Pager(limit="1MiB", pool="32MiB", block="16KiB", register="early") as pager:

        def work(argument: int | None) -> int | None:
            """Make, write, evict, pin and give up regions."""
            try:
                rng = random.Random(argument)
                for _ in range(8):
                    region = pager.region(MIB)
                    model = rng.randbytes(MIB)
                    view = memoryview(region)
                    view[:] = model
                    region.evict()
                    at = rng.randrange(MIB - 64 * KIB)
                    with region.pinned(at, 64 * KIB):
                        assert view[at : at + 64 * KIB] == model[at : at + 64 * KIB]
                    region.prefetch()
                    assert view == model
                    view.release()
                    if rng.random() < 0.5:
                        region.release()
            except BaseException as e:
                failed.append(repr(e))
            return None

        callback = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(work)
        c = ctypes.CDLL(None, use_errno=True)
        c.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
        threads = [ctypes.c_ulong() for _ in range(n)]
        for k, thread in enumerate(threads):
            assert (
                c.pthread_create(ctypes.byref(thread), None, callback, ctypes.c_void_p(k + 1)) == 0
            )
        for thread in threads:
            assert c.pthread_join(thread, None) == 0
        assert not failed, failed
        pager.check()
        assert pager.regions == []
        assert pager.stats().pinned == 0


def test_foreign_threads() -> None:
    """Threads that were started by C (gevent's pool, a library's own) call and fault as any other."""
    run_child(foreign_threads, args=[4], timeout=120)


# ---- a search that is longer than a step


def long_search() -> None:
    """What the child of test_long_search runs: 130,000 blocks that have no copy lie before those that have one."""
    with uswap.Pager(
        limit="8MiB", pool="4MiB", block="4KiB", register="early", readahead=0, shuffle="off"
    ) as pager:
        fills = pager.region(512 * MIB)
        view = memoryview(fills)
        for at in range(0, len(view), 4 * KIB):
            view[at : at + 4 * KIB] = b"\1" * (4 * KIB)
        fills.evict()
        clean = pager.region(7 * MIB // 4)
        memoryview(clean)[:] = model = content(clean.length)
        clean.evict()
        assert memoryview(clean) == model  # in RAM, with copies in the pool
        pager.check()  # and have the last fault counted
        assert pager.stats().kept == clean.length
        # There is room for these only where the copies go.
        written = pager.region(3 * MIB)
        memoryview(written)[:] = content(written.length)
        written.evict()
        stats = pager.stats()
        assert stats.kept < clean.length
        assert (stats.refused_noroom, stats.over_limit) == (0, 0)
        assert written.residency().resident == 0
        pager.check()
        assert memoryview(clean) == model
        assert memoryview(written) == content(written.length)
        assert all(view[at] == 1 for at in range(0, len(view), MIB))
        pager.check()


def test_long_search() -> None:
    """The copies of clean blocks are found wherever they are, in as many steps as it takes."""
    run_child(long_search, timeout=60)
