# SPDX-License-Identifier: MIT
"""The swap file by itself: what is opened, whether O_DIRECT works on it, and how that is known."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import uswap
from uswap import swapfile
from uswap._core import ffi, lib
from uswap.errors import LimitError
from uswap.swapfile import open_swap

import mounts
from child import run_child

KIB, MIB = 1 << 10, 1 << 20
SEGMENT = 256 * KIB


def needs(what: str) -> None:
    """Skip where a mount or a device of that kind can't be had."""
    if (why := mounts.why_not(what)) is not None:
        pytest.skip(why)


@contextmanager
def injected(op: str, error: int) -> Iterator[None]:
    """Have a call of csrc/sys.c fail."""
    assert lib.us_inject_set(op.encode(), error, 1) == 0
    try:
        yield
    finally:
        lib.us_inject_set(op.encode(), 0, 0)


def described(path: str | Path, **more: Any) -> dict[str, Any]:
    """Open a swap file, and say what there is to say of it."""
    given = {"size": 8 * MIB, "segment": SEGMENT, **more}
    file = open_swap(str(path), **given)
    try:
        found = os.fstat(file.fd)
        return {
            "direct": file.direct,
            "flag": bool(fcntl.fcntl(file.fd, fcntl.F_GETFL) & os.O_DIRECT),
            "why": file.why,
            "in_ram": file.in_ram,
            "reserved": file.reserved,
            "about": file.about,
            "size": file.size,
            "length": found.st_size,
            "blocks": found.st_blocks * 512,
        }
    finally:
        file.close()


def test_asked_of_the_kernel() -> None:
    """Where the kernel says what O_DIRECT wants, that decides, and is said."""
    memory, offset = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    with tempfile.TemporaryFile() as file:
        error = -lib.us_dio_align(file.fileno(), memory, offset)
    if error:
        pytest.skip(f"it does not say here: {os.strerror(error)}")
    found = described(tempfile.gettempdir())
    assert found["direct"] == found["flag"] == (offset[0] <= 4096)
    assert f"aligned to {offset[0]} bytes in the file and {memory[0]} in memory" in found["why"]
    assert found["why"] in found["about"]


@pytest.mark.parametrize(
    ("memory", "offset", "good"),
    [
        (1, 1, True),
        (512, 512, True),
        (4, 4096, True),
        (4096, 4096, True),
        (512, 8192, False),
        (8192, 512, False),
        (65536, 65536, False),
        (512, 3072, False),
    ],
)
def test_alignment(memory: int, offset: int, good: bool) -> None:
    """What 4096 is a multiple of suffices; the numbers are told either way."""
    direct, why = swapfile._suffices(memory, offset)
    assert direct is good
    assert str(memory) in why
    assert str(offset) in why


def test_tried() -> None:
    """Where the kernel does not say, one aligned write and read through O_DIRECT does."""
    with tempfile.TemporaryFile() as file:
        if lib.us_in_ram(file.fileno()) == 1:
            pytest.skip("TMPDIR is in RAM")
    with injected("dio", errno.ENODATA):
        found = described(tempfile.gettempdir())
    assert found["direct"]
    assert found["flag"]
    assert "by trial" in found["about"]


def test_refused_by_the_file_system() -> None:
    """A file system that has no direct I/O for the file is used without, and it is said."""
    with injected("dio", errno.EOPNOTSUPP):
        found = described(tempfile.gettempdir())
    assert not found["direct"]
    assert not found["flag"]
    assert "through the page cache" in found["about"]
    assert "none for this file" in found["about"]


def test_in_ram() -> None:
    """A file of tmpfs takes the very RAM that it is to spare, O_DIRECT or not."""
    found = described("/dev/shm")
    assert found["in_ram"]
    assert not found["direct"]
    assert not found["flag"]
    assert "in RAM (tmpfs)" in found["about"]


def journalled() -> list[dict[str, Any]]:
    """What the child of test_journalled runs."""
    mounts.alone()
    with mounts.mounted("ext4", 64 * MIB, options="data=journal") as place:
        told = described(place)
        with injected("dio", errno.ENODATA):
            return [told, described(place)]


def test_journalled() -> None:
    """ext4 with data=journal takes O_DIRECT and goes through the page cache: statx says so, the trial finds out."""
    needs("ext4")
    told, tried = run_child(journalled).json
    if told["why"] == "a trial went through the page cache":
        pytest.skip("this kernel does not say")
    assert "none for this file" in told["why"]
    assert tried["why"] == "a trial went through the page cache"
    assert not any(one["direct"] or one["flag"] for one in (told, tried))


def coarse() -> list[dict[str, Any]]:
    """What the child of test_coarse_device runs."""
    with mounts.device(16 * MIB, 8192) as name:
        told = described(name, overwrite=True)
        with injected("dio", errno.ENODATA):
            return [told, described(name, overwrite=True)]


def test_coarse_device() -> None:
    """A device of larger blocks than the format's alignment gets no O_DIRECT, told or tried."""
    needs("8192")
    told, tried = run_child(coarse).json
    assert "it must be aligned to 8192 bytes in the file" in told["why"]
    assert tried["why"] == "a trial failed, EINVAL"
    assert not any(one["direct"] or one["flag"] for one in (told, tried))
    assert told["size"] == 8 * MIB


def aligned() -> list[Any]:
    """What the child of test_device runs."""
    with mounts.device(16 * MIB, 4096) as name:
        found = described(name, size=64 * MIB, overwrite=True)
        with pytest.raises(LimitError) as error:
            described(name, size=64 * MIB, segment=4 * MIB, overwrite=True)
        return [found, str(error.value)]


def test_device() -> None:
    """A block device is used as far as it goes; one with room for less than eight segments is refused."""
    needs("4096")
    found, error = run_child(aligned).json
    assert found["direct"]
    assert found["size"] == 16 * MIB
    assert "has room for 4 segments of 4 MiB; accepted: a device of 8 or more" in error


def sparse() -> dict[str, Any]:
    """What the child of test_not_reserved runs."""
    mounts.alone()
    with mounts.mounted("ext4", 32 * MIB, features="^extent,^64bit") as place:
        return described(place, size=256 * MIB)


def test_not_reserved() -> None:
    """Where room can't be reserved the file is sparse: it is said, and nothing is written in its place."""
    needs("ext4")
    found = run_child(sparse).json
    assert not found["reserved"]
    assert "256 MiB, not reserved" in found["about"]
    assert found["length"] == 256 * MIB
    assert found["blocks"] < MIB
    assert found["direct"]


def full() -> list[str]:
    """What the child of test_no_room runs."""
    mounts.alone()
    with mounts.mounted("tmpfs", 4 * MIB) as place:
        for path in (place, place / "named"):
            with pytest.raises(OSError, match="no room for a swap file of 8 MiB") as error:
                described(path)
            assert error.value.errno == errno.ENOSPC
        return sorted(one.name for one in place.iterdir())


def test_no_room() -> None:
    """No room for all of it is an error that says so, and leaves no file behind."""
    needs("tmpfs")
    assert run_child(full).json == []


def device_in_use(how: str) -> None:
    """What the children of test_device_in_use run."""
    mounts.alone()

    def make(path: str) -> uswap.Pager:
        return uswap.Pager(limit="2MiB", pool="8MiB", swapfile=path, swap="16MiB", overwrite=True)

    def refused(path: str) -> None:
        try:
            make(path)
        except OSError as e:
            assert "in use" in str(e) or "busy" in str(e), e
        else:
            raise AssertionError(path)

    with mounts.device(32 * MIB, 4096 if how == "swap" else 1024) as device:
        if how == "swap":
            mounts.run("mkswap", device)
            mounts.run("swapon", device)
            try:
                refused(device)
            finally:
                mounts.run("swapoff", device)
        else:
            mounts.run("mkfs.ext4", "-q", device)
            place = Path(tempfile.mkdtemp())
            mounts.run("mount", "-o", how, device, place)
            try:
                refused(device)
            finally:
                mounts.run("umount", place)
                place.rmdir()
            mounts.run("fsck.ext4", "-fn", device)  # as it was
        with make(device):  # nobody has it any more
            refused(device)


@pytest.mark.parametrize("how", ["rw", "ro", "swap"])
def test_device_in_use(how: str) -> None:
    """A block device that is mounted, a swap area or another pager's is refused, and unharmed."""
    if why := mounts.why_not("4096"):
        pytest.skip(why)
    run_child(device_in_use, args=[how])
