# SPDX-License-Identifier: MIT
"""The second tier: what the pool has no room for goes to a file and comes back the same."""

from __future__ import annotations

import errno
import os
import random
import signal
import tempfile
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


@pytest.mark.parametrize("delays", ["all:300", "commit:500,serve:200", "press:2000,bring:1000"])
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
        ("copy:EAGAIN:5,read:SHORT:3,move:EBUSY:9", "read_retries_or_none"),
    ],
)
def test_failures(inject: str, counter: str) -> None:
    """Failing, short and corrupted I/O now and then costs a retry and no byte."""
    found = _stress(inject=inject, seconds=1.5)
    assert found["lost"] == 0
    assert found.get(counter, 1) > 0


def test_compaction() -> None:
    """Random overwriting for long keeps the file within its size, by copying what lives together."""
    found = _stress(swap="12MiB", seconds=SECONDS)
    assert found["swap_used"] <= 12 * MIB
    assert found["rewritten"] > 0


def losing() -> None:
    """What the child of test_lost runs."""
    content = data("random", 8 * MIB, random.Random(3))
    with uswap.Pager(
        limit=MIB,
        pool=MIB,
        segment="256KiB",
        swapfile="/tmp",
        swap="32MiB",
        inject="read:EIO:1",
        readahead=0,
    ) as pager:
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
    with pytest.raises(OSError, match="nowhere"):
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
    """Where there is no O_DIRECT it is said once, all bytes are right, and the page cache keeps nothing."""
    if need is not None and (why := mounts.why_not(need)) is not None:
        pytest.skip(why)
    found = run_child(child, args=[io], timeout=120).json
    assert found["io"] == {"uring": "io_uring", "threads": "threads"}[io]
    assert len(found["warnings"]) == 1
    assert "has no O_DIRECT" in found["warnings"][0]
    assert "through the page cache, which is dropped behind it" in found["about"]
    assert found["written"] > 8 * MIB
    assert found["read"] > 8 * MIB
    assert found["before"] == 32 * MIB  # so the counting counts
    assert found["after"] == 0


@pytest.mark.parametrize("io", ["uring", "threads"])
def test_buffered_stress(io: str) -> None:
    """The stress without O_DIRECT, with writes that fail between page cache and device, and reads that fail."""
    found = _stress(io=io, inject="dio:EOPNOTSUPP:1,write:LATE:20,read:EIO:40", seconds=1.5)
    assert found["lost"] == 0
    assert found["stored_faults"] > 0
    assert found["write_errors"] > 0
