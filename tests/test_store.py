# SPDX-License-Identifier: MIT
"""The second tier: what the pool has no room for goes to a file and comes back the same."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import uswap

import mounts
import workload
from child import run_child
from workload import KIB, MIB, data

FAULTS_BY = ("inline", "message")

ROOT = Path(__file__).parent.parent
SECONDS = min(4.0, float(os.environ.get("USWAP_STRESS_SECONDS") or 4))


def stress(options: dict[str, Any], seconds: float, more: dict[str, Any]) -> dict[str, Any]:
    """What the children of the stress tests run."""
    with tempfile.TemporaryDirectory() as directory:
        found = workload.stress(
            seconds, {"swapfile": directory, **options}, threads=4, sample=False, **more
        )
        assert os.listdir(directory) == []
    return found


def _stress(seconds: float = SECONDS, more: dict[str, Any] | None = None, **options: Any) -> Any:
    # 16 MiB of data, the pool a sixteenth of it.
    given = {"pool": MIB, "swap": "64MiB", "segment": "256KiB", **options}
    found = run_child(stress, args=[given, seconds, more or {}], timeout=seconds * 4 + 90).json
    assert min(found["operations"]) > 0
    workload.check_injected(found["injected"], options.get("inject", ""))
    return found


def test_stress() -> None:
    """Four threads, a pool of 1/16 of the data, the file behind it: every byte is right."""
    found = _stress()
    assert found["stored_faults"] > 100
    assert found["written"] > 4 * MIB
    assert found["lost"] == 0


@pytest.mark.parametrize("io", ["uring", "threads"])
def test_engines(io: str) -> None:
    """Both ways to do I/O carry the same bytes."""
    found = _stress(io=io, seconds=1.5)
    assert found["about"]["io"] == {"uring": "io_uring", "threads": "threads"}[io]
    assert found["stored_faults"] > 0


@pytest.mark.parametrize("io", ["uring", "threads"])
@pytest.mark.parametrize("inject", ["write:SLOW:1", "read:SLOW:2,write:SLOW:3"])
def test_slow_disk(inject: str, io: str) -> None:
    """Writes and reads that take long: much happens to a block while it is under way."""
    found = _stress(inject=inject, io=io, swap="16MiB", seconds=1.5)
    assert found["written"] > 0
    assert found["lost"] == 0


@pytest.mark.parametrize("delays", ["all:300", "commit:500,serve:200", "compress:2000,swapin:1000"])
def test_delays(delays: str) -> None:
    """Whatever takes long on the way to the file and back, the bytes are right."""
    assert _stress(delays=delays, seconds=1.5)["written"] > 0


@pytest.mark.parametrize(
    ("inject", "counter"),
    [
        ("read:SHORT:5,write:SHORT:3", "written"),
        ("write:EIO:20", "write_errors"),
        ("write:ENOSPC:9", "write_errors"),
        ("read:EIO:40", "read_retries"),
        ("read:FLIP:40", "read_retries"),
        ("copy:EAGAIN:5,read:SHORT:3,move:EBUSY:9,unshare:EINVAL:1", "refused_pinned"),
    ],
)
def test_failures(inject: str, counter: str) -> None:
    """Failing, short and corrupted I/O now and then costs a retry and no byte."""
    found = _stress(inject=inject, seconds=1.5)
    assert found["lost"] == 0
    assert found[counter] > 0


def test_compaction() -> None:
    """Random overwriting for long keeps the file within its size, by copying what lives together."""
    found = _stress(swap="8MiB", seconds=SECONDS)
    assert found["swap_used"] <= 8 * MIB
    assert found["rewritten"] > 0


UNREADABLE: dict[str, Any] = {  # a pager that gets nothing back from its file
    "limit": MIB,
    "pool": MIB,
    "segment": "256KiB",
    "swapfile": "/tmp",
    "swap": "32MiB",
    "inject": "read:EIO:1",
    "readahead": 0,
}


def losing() -> None:
    """What the child of test_lost runs."""
    content = data("random", 8 * MIB, random.Random(3))
    with uswap.Pager(**UNREADABLE) as pager:
        region = pager.region(8 * MIB)
        view = memoryview(region)
        view[:] = content
        region.evict()
        where = region.residency()
        at = where.states.index(6) * region.block
        view[at]
    print("survived", flush=True)


def test_lost() -> None:
    """A block whose bits are not what they were is never handed out: SIGBUS, and a line says which."""
    result = run_child(losing, timeout=60, check=False)
    assert result.returncode == -signal.SIGBUS, result
    assert "survived" not in result.stdout
    assert "can't be read back from the swap file" in result.stderr


def ending() -> None:
    """What the child of test_end_of_what_is_lost runs."""
    chunk = random.Random(3).randbytes(16 * KIB)
    with uswap.Pager(**UNREADABLE) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        for at in range(0, len(view), len(chunk)):  # in order, so that nothing is read back
            view[at : at + len(chunk)] = chunk
        region.evict()
        at = region.residency().states.index(6) * region.block
        with region.pinned(at, 1):
            print("pinned", flush=True)
        lost = pager.stats().lost
        assert lost > 0, lost
    print("closed", flush=True)
    view[at]
    print("survived", flush=True)


def test_end_of_what_is_lost() -> None:
    """What can't be read back keeps neither a pin waiting for ever nor the end of a region; a touch is SIGBUS then too."""
    result = run_child(ending, timeout=60, check=False)
    assert result.returncode == -signal.SIGBUS, result
    assert result.stdout.split() == ["pinned", "closed"]


def closing(directory: str) -> None:
    """What the child of test_close runs."""
    content = data("half", 16 * MIB, random.Random(2))
    with uswap.Pager(
        limit=MIB, pool=MIB, segment="256KiB", swapfile=directory, swap="64MiB"
    ) as pager:
        region = pager.region(16 * MIB)
        view = memoryview(region)
        view[:] = content
        region.evict()
        stats = pager.stats()
        assert region.residency().stored > 7 * MIB, region.residency()
        assert stats.stored_raw >= stats.stored > 0
        # A clean block that came from the file is dropped without being written again.
        for at in range(0, 16 * MIB, 4096):
            assert view[at] == content[at]
        written = pager.stats().written
        region.evict()
        time.sleep(0.05)
        again = pager.stats().written - written
        assert again < written / 2, (again, written)
        assert os.listdir(directory) == []
        pager.check()
    assert view == content


def test_close(tmp_path: Path) -> None:
    """Closing brings all of it back from the file; a clean block's file copy is kept meanwhile."""
    run_child(closing, args=[str(tmp_path)], timeout=90)


def refusing(directory: str) -> None:
    """What the child of test_bad_files runs."""
    path = os.path.join(directory, "there")
    with open(path, "wb") as file:
        file.write(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        uswap.Pager(limit=MIB, pool=8 * MIB, swapfile=path, swap="8MiB")
    with open(path, "rb") as file:
        assert file.read() == b"precious"
    with uswap.Pager(limit=MIB, pool=8 * MIB, swapfile=path, swap="8MiB", overwrite=True) as pager:
        assert path in pager.about()["swapfile"]
    with pytest.raises(OSError, match=r"directory '.*/nowhere' does not exist"):
        uswap.Pager(limit=MIB, pool=8 * MIB, swapfile=os.path.join(directory, "nowhere", "x"))
    with pytest.raises(uswap.LimitError, match="segments"):
        uswap.Pager(limit=MIB, pool=8 * MIB, swapfile=directory, swap="8MiB", segment="16MiB")
    with pytest.raises(OSError, match="no room") as error:
        uswap.Pager(limit=MIB, pool=8 * MIB, swapfile=directory, swap="4096TiB")
    assert error.value.errno in (errno.ENOSPC, errno.EFBIG)


def test_bad_files(tmp_path: Path) -> None:
    """An existing file is not touched unasked; what can't be is refused with what is accepted."""
    run_child(refusing, args=[str(tmp_path)], timeout=60)


def on_tmpfs() -> None:
    """What the child of test_tmpfs runs."""
    content = data("half", 8 * MIB, random.Random(2))
    with pytest.warns(uswap.DegradedWarning, match="'/dev/shm' is in RAM"):
        pager = uswap.Pager(
            limit=MIB, pool=MIB, segment="256KiB", swapfile="/dev/shm", swap="16MiB"
        )
    with pager:
        assert "in RAM (tmpfs)" in pager.about()["swapfile"]
        region = pager.region(8 * MIB, block=64 * KIB)
        view = memoryview(region)
        view[:] = content
        assert view == content
        assert pager.stats().stored > 0


def test_tmpfs() -> None:
    """A file system of another kind carries it too; that it is RAM is said."""
    run_child(on_tmpfs, timeout=60)


def counting() -> None:
    """What the child of test_as_they_are runs."""
    rng = random.Random(4)
    content = b"".join(data(kind, 16 * KIB, rng) for kind in ("text", "numbers") * 256)
    with uswap.Pager(
        limit=MIB,
        pool=16 * MIB,
        block="16KiB",
        segment="256KiB",
        swapfile="/var/tmp",
        swap="64MiB",
    ) as pager:
        region = pager.region(len(content))
        view = memoryview(region)
        view[:] = content
        region.evict()
        before = pager.stats()
        assert before.pooled_raw == len(content)
        region.migrate("file")
        after = pager.stats()
        assert after.stored_raw == len(content)
        assert after.written_objects - before.written_objects == len(content) // (16 * KIB)
        # As they are: not a byte more or less, nothing decompressed, no memory asked for.
        assert after.stored == before.pooled == after.written_object_bytes
        assert after.decompressions == before.decompressions
        assert after.allocations == before.allocations
        assert view == content
        # The counters do count: each block that came back was decompressed (what was counted last is
        # seen when the loop has come to rest).
        end = time.monotonic() + 5
        while (count := pager.stats().decompressions - after.decompressions) < len(content) // (
            16 * KIB
        ) and time.monotonic() < end:
            time.sleep(0.01)
        assert count >= len(content) // (16 * KIB)
        assert pager.stats().allocations > 0


def test_as_they_are() -> None:
    """Writing out takes no memory and decompresses nothing: counters say so."""
    run_child(counting, timeout=60)


def test_all_is_counted() -> None:
    """No file of the pager's half asks for memory behind the counter's back."""
    # What checks the invariants must not change what it counts.
    others = {"client.c", "guard.c", "mover.c", "hist.c", "naive.c", "invariants.c"}
    files = [f for f in ROOT.glob("csrc/*.c") if f.name not in others and "measure" not in f.name]
    assert len(files) > 10
    for file in files:
        found = re.findall(r"(?<!us_)\b(?:malloc|calloc|realloc|aligned_alloc)\(", file.read_text())
        assert not found, (file.name, found)


def sinking(directory: str) -> None:
    """What the child of test_sinks_as_they_are runs."""
    rng = random.Random(5)  # LZ4 makes two thirds of it
    content = struct.pack("<8192q", *(rng.randrange(1000) for _ in range(8192)))
    with uswap.Pager(
        limit=MIB, pool=2 * MIB, segment="256KiB", swapfile=directory, swap="64MiB", readahead=0
    ) as pager:
        region = pager.region(32 * MIB)
        view = memoryview(region)
        for at in range(0, 32 * MIB, len(content)):
            view[at : at + len(content)] = content
            if at == 8 * MIB:
                warm = pager.stats()
        after = pager.stats()
        assert after.written_objects - warm.written_objects > 500
        assert after.decompressions == warm.decompressions == 0
        # The pool's own tables may still grow, when more objects of a size come.
        assert after.allocations - warm.allocations <= 8
        assert all(
            view[at : at + len(content)] == content for at in range(0, 32 * MIB, len(content))
        )


def test_sinks_as_they_are(tmp_path: Path) -> None:
    """The same where the pool overflows by itself, with no word from the user."""
    run_child(sinking, args=[str(tmp_path)], timeout=60)


def neighbours() -> None:
    """What the child of test_neighbours runs."""
    content = random.Random(6).randbytes(8 * MIB)
    blocks = len(content) // (16 * KIB)
    with uswap.Pager(
        limit=4 * MIB, pool=2 * MIB, segment="512KiB", swapfile="/var/tmp", swap="64MiB"
    ) as pager:
        region = pager.region(len(content))
        view = memoryview(region)
        view[:] = content
        region.evict()
        region.migrate("file")
        before = pager.stats()
        assert region.residency().stored > len(content) * 9 // 10
        assert view == content
        after = pager.stats()
        # Written side by side, read side by side: many blocks a read, and few faults.
        assert after.reads - before.reads < blocks // 2
        assert after.faults["stored"] - before.faults["stored"] < blocks // 4
        assert after.readahead_blocks - before.readahead_blocks > blocks // 2
        region.evict()
        region.migrate("file")
        reads = pager.stats().reads
        region.release()
        assert pager.stats().reads - reads < blocks // 4
        assert view == content
        # In an order that has no neighbours each block is a read of its own.
        region = pager.region(len(content))
        view = memoryview(region)
        view[:] = content
        region.evict()
        region.migrate("file")
        reads = pager.stats().reads
        order = list(range(0, blocks, 7))
        random.Random(7).shuffle(order)
        for k in order:
            at = k * 16 * KIB
            assert view[at : at + 16] == content[at : at + 16]
        assert len(order) // 2 < pager.stats().reads - reads <= 2 * len(order)


def test_neighbours() -> None:
    """What lies side by side in the file and is read in order comes in one read for many blocks."""
    run_child(neighbours, timeout=60)


# ---- a disk that is full, or broken


def full(inject: str) -> dict[str, Any]:
    """What the children of test_full_disk run: a sparse file on a disk without room for all of it."""
    mounts.alone()
    warnings.simplefilter("ignore", uswap.DegradedWarning)
    rng = random.Random(6)
    with mounts.mounted("ext4", 48 * MIB, features="^extent,^64bit") as place:
        room = os.statvfs(place)
        ballast = place / "ballast"
        ballast.write_bytes(b"x" * (room.f_bavail * room.f_frsize - 5 * MIB))
        with uswap.Pager(
            limit=2 * MIB,
            pool=4 * MIB,
            segment="256KiB",
            swapfile=place,
            swap="32MiB",
            inject=inject,
        ) as pager:
            assert "not reserved" in pager.about()["swapfile"]
            content = bytearray(data("half", 24 * MIB, rng))  # after compression 12
            region = pager.region(24 * MIB)
            view = memoryview(region)
            view[:] = content
            region.evict()
            before = pager.stats()
            begin = time.monotonic()
            while time.monotonic() < begin + 2.5:  # at work all the time
                at = rng.randrange(len(content) - 5000)
                view[at : at + 500] = content[at : at + 500] = rng.randbytes(500)
                assert view[at : at + 5000] == content[at : at + 5000]
            during = pager.stats()
            seconds = time.monotonic() - begin
            pager.check()
            ballast.unlink()
            os.sync()
            end = time.monotonic() + 20
            while time.monotonic() < end:
                region.evict()
                after = pager.stats()
                if after.resident <= 2 * MIB and after.stored > during.stored:
                    break
                time.sleep(0.1)
            pager.check()
            assert view == content
        assert view == content
    return {
        "errors": [one.write_errors for one in (before, during, after)],
        "stored": [one.stored for one in (before, during, after)],
        "pooled": [one.pooled for one in (before, during, after)],
        "resident": [one.resident for one in (before, during, after)],
        "written": [one.written - one.rewritten for one in (before, during, after)],
        "lost": after.lost,
        "seconds": seconds,
    }


@pytest.mark.parametrize("inject", ["", "dio:EOPNOTSUPP:1"], ids=["direct", "buffered"])
def test_full_disk(inject: str) -> None:
    """A disk that fills is said once, tried again once a second, used again when there is room; all bytes are right."""
    if (why := mounts.why_not("ext4")) is not None:
        pytest.skip(why)
    result = run_child(full, args=[inject], timeout=120)
    found = result.json
    before, during, _ = found["errors"]
    assert before > 0
    assert 0 < during - before <= 4 * (found["seconds"] + 1)  # four may be under way
    assert result.stderr.count("the swap file is full") == 1
    assert found["stored"][0] > 2 * MIB  # what there was room for
    assert found["stored"][0] < 6 * MIB
    assert found["pooled"][1] > 2 * MIB
    assert found["resident"][1] > 2 * MIB  # the rest, over the limit
    assert found["stored"][2] > found["stored"][1] + MIB
    assert found["resident"][2] <= 2 * MIB
    assert found["lost"] == 0


def broken(error: str) -> dict[str, Any]:
    """What the children of test_broken_disk and test_quota run: no write works."""
    rng = random.Random(7)
    with uswap.Pager(
        limit=2 * MIB,
        pool=4 * MIB,
        segment="256KiB",
        swapfile=tempfile.gettempdir(),
        swap="32MiB",
        inject=f"write:{error}:1",
    ) as pager:
        content = bytearray(data("half", 16 * MIB, rng))
        region = pager.region(16 * MIB)
        view = memoryview(region)
        view[:] = content
        begin = time.monotonic()
        while time.monotonic() < begin + 4:
            at = rng.randrange(len(content) - 5000)
            view[at : at + 500] = content[at : at + 500] = rng.randbytes(500)
            assert view[at : at + 5000] == content[at : at + 5000]
        seconds = time.monotonic() - begin
        stats = pager.stats()
        pager.check()
        assert view == content
    assert view == content
    return {
        "errors": stats.write_errors,
        "used": stats.swap_used,
        "live": stats.swap_live,
        "stored": stats.stored,
        "seconds": seconds,
    }


def test_broken_disk() -> None:
    """A write that fails costs its segment and no byte; a device that is away is not asked all the time."""
    result = run_child(broken, args=["EIO"], timeout=90)
    found = result.json
    assert found["errors"] >= 5
    assert found["errors"] <= 4 * (found["seconds"] + 2)
    assert found["used"] == found["errors"] * 256 * KIB  # retired: neither free nor used again
    assert found["live"] == found["stored"] == 0
    assert "a write to the swap file failed (Input/output error)" in result.stderr
    lines = [line for line in result.stderr.splitlines() if "to the swap file fail" in line]
    # Another one may have failed since the counters were read.
    assert min(found["errors"], 9) <= len(lines) <= 9


def test_quota() -> None:
    """A quota that is used up is a full disk: it costs no segment, and is said once."""
    result = run_child(broken, args=["EDQUOT"], timeout=90)
    found = result.json
    assert 2 <= found["errors"] <= 4 * (found["seconds"] + 2)
    assert found["used"] == found["stored"] == 0
    assert result.stderr.count("the swap file is full") == 1
    assert "to the swap file fail" not in result.stderr


# ---- without O_DIRECT


def cached(file: BinaryIO) -> int:
    """Return how many bytes of a file or device the page cache holds."""
    from uswap._core import lib

    return int(lib.us_file_cached(file.fileno(), 0, file.seek(0, os.SEEK_END)))


def settled(file: BinaryIO) -> int:
    """The same, when what is under way has had time to go."""
    end = time.monotonic() + 5
    while (found := cached(file)) > 0 and time.monotonic() < end:
        time.sleep(0.02)
    return found


def caching(path: Path, io: str, inject: str) -> dict[str, Any]:
    """Page through a file without O_DIRECT; returns what was in the page cache when."""
    file = path.open("r+b" if path.exists() else "w+b", buffering=0)
    file.write(bytes(32 * MIB))
    os.fsync(file)
    before = cached(file)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rng = random.Random(4)
    content = bytearray(data("half", 16 * MIB, rng))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pager = uswap.Pager(
            limit=MIB,
            pool=MIB,
            segment="256KiB",
            swapfile=path,
            swap="32MiB",
            io=io,
            inject=inject,
            overwrite=True,
        )
    with pager:
        region = pager.region(16 * MIB)
        view = memoryview(region)
        view[:] = content
        region.evict()
        for _ in range(300):
            at = rng.randrange(len(content) - 50_000)
            view[at : at + 1000] = content[at : at + 1000] = rng.randbytes(1000)
            assert view[at : at + 50_000] == content[at : at + 50_000]
        assert view == content  # a run
        region.evict()
        after = settled(file)
        pager.check()
        stats, about = pager.stats(), pager.about()
    assert view == content
    file.close()
    return {
        "before": before,
        "after": after,
        "written": stats.written,
        "read": stats.read_bytes,
        "io": about["io"],
        "about": about["swapfile"],
        "warnings": [str(one.message) for one in caught],
    }


def caching_journalled(io: str) -> dict[str, Any]:
    """What a child of test_page_cache runs: the file system goes through the page cache by itself."""
    mounts.alone()
    with mounts.mounted("ext4", 96 * MIB, options="data=journal") as place:
        return caching(place / "swap", io, "")


def caching_coarse(io: str) -> dict[str, Any]:
    """What a child of test_page_cache runs: a device with blocks of 8 KiB, of which spans are halves."""
    with mounts.device(32 * MIB, 8192) as name:
        return caching(Path(name), io, "")


def caching_refused(io: str) -> dict[str, Any]:
    """What a child of test_page_cache runs: an ordinary disk."""
    with tempfile.TemporaryDirectory() as directory:
        return caching(Path(directory) / "swap", io, "dio:EOPNOTSUPP:1")


@pytest.mark.parametrize("io", ["uring", "threads"])
@pytest.mark.parametrize(
    ("child", "need"),
    [(caching_refused, None), (caching_journalled, "ext4"), (caching_coarse, "8192")],
    ids=["refused", "journalled", "coarse"],
)
def test_page_cache(child: Callable[[str], Any], need: str | None, io: str) -> None:
    """Where there is no O_DIRECT it is said once, all bytes are right, and the page cache keeps none of it."""
    if need is not None and (why := mounts.why_not(need)) is not None:
        pytest.skip(why)
    found = run_child(child, args=[io], timeout=120).json
    assert found["io"] == {"uring": "io_uring", "threads": "threads"}[io]
    assert len(found["warnings"]) == 1
    assert "has no O_DIRECT" in found["warnings"][0]
    assert "through the page cache, which is dropped behind it" in found["about"]
    assert found["written"] > 8 * MIB
    assert found["read"] > 8 * MIB
    # So the counting counts. The kernel may have taken some pages back meanwhile.
    assert 31 * MIB < found["before"] <= 32 * MIB
    # A page that the journal, or another request, had in hand just when it was to go stays.
    assert found["after"] <= 64 * KIB


@pytest.mark.parametrize("io", ["uring", "threads"])
def test_buffered_stress(io: str) -> None:
    """The stress without O_DIRECT, with writes that fail between page cache and device, and reads that fail."""
    found = _stress(io=io, inject="dio:EOPNOTSUPP:1,write:LATE:20,read:EIO:40", seconds=1.5)
    assert found["lost"] == 0
    assert found["stored_faults"] > 0
    assert found["write_errors"] > 0


def large(block: int, segment: int, pool: int) -> None:
    """What the child of test_large_blocks runs."""
    content = random.Random(8).randbytes(24 * MIB)
    with uswap.Pager(
        limit=32 * MIB,
        pool=pool,
        segment=segment,
        block=block,
        swapfile="/var/tmp",
        swap=16 * segment + 64 * MIB,
    ) as pager:
        region = pager.region(len(content))
        view = memoryview(region)
        view[:] = content
        region.evict()
        where = region.residency()
        assert where.resident == 0, where
        assert where.tiers["file"] > len(content) // 3
        pager.check()
        assert view == content


@pytest.mark.parametrize(
    ("block", "segment", "pool"), [(2 * MIB, 4 * MIB, 16 * MIB), (512 * KIB, MIB, 4 * MIB)]
)
def test_large_blocks(block: int, segment: int, pool: int) -> None:
    """Blocks that the pool holds few of: between its marks there may be no room for one more."""
    run_child(large, args=[block, segment, pool], timeout=60)


def meanwhile() -> None:
    """What the child of test_fault_meanwhile runs."""
    block, few = 16 * KIB, 8
    content = b"".join(data("half", block, random.Random(k)) for k in range(512))
    with uswap.Pager(
        limit=32 * MIB,
        pool=16 * MIB,
        block=block,
        swapfile="/var/tmp",
        swap="64MiB",
        readahead=0,
        inject="write:SLOW:1",  # up to 20 ms
    ) as pager:
        region = pager.region(len(content))
        view = memoryview(region)
        view[:] = content
        region.evict()
        first = pager.stats()
        for at in range(0, len(content), few * block):
            begun = pager.stats().written_objects
            sent = threading.Thread(target=region.migrate, args=("file", at, few * block))
            sent.start()
            while pager.stats().written_objects == begun:
                time.sleep(0.0001)
            for k in range(at, at + few * block, block):
                assert view[k : k + block] == content[k : k + block]
            sent.join()
        pager.check()
        last = pager.stats()
        kinds = {kind: last.faults[kind] - first.faults[kind] for kind in last.faults}
        # Until its write is done the pool's object is the block, and a fault waits for nothing.
        assert kinds["pooled"] > 50, kinds
        assert kinds["pooled"] + kinds["stored"] == 512, kinds
        assert last.written_objects - first.written_objects == 512
        assert view == content


def test_fault_meanwhile() -> None:
    """A fault on a block whose write is under way is served from the pool."""
    run_child(meanwhile, timeout=60)
