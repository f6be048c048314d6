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

from uswap import swapfile
from uswap._core import ffi, lib
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
