# SPDX-License-Identifier: MIT
"""The swap file by itself: what is opened, whether O_DIRECT works on it, and how that is known."""

from __future__ import annotations

import contextlib
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


# ---- in use


def refusal(path: str | Path) -> str:
    """Open a file that is in use; what the error says."""
    with pytest.raises(OSError, match="swapfile is in use") as error:
        described(path, overwrite=True)
    assert error.value.errno == errno.EBUSY
    assert error.value.filename == str(path)
    return str(error.value)


def test_opened_twice(tmp_path: Path) -> None:
    """A file is one pager's at a time, under whatever name; when it is closed it can be used again."""
    path, other = tmp_path / "swap", tmp_path / "link"
    file = open_swap(str(path), 8 * MIB, segment=SEGMENT)
    os.link(path, other)
    for name in (path, other):
        assert "it is the swap file of another pager" in refusal(name)
    assert path.exists()
    file.close()
    assert "not locked" not in described(path, overwrite=True)["about"]


def test_lock_of_forked(tmp_path: Path) -> None:
    """A process that a library forked has the descriptor, and does not keep the file locked."""
    import ctypes
    import signal

    path = tmp_path / "swap"
    file = open_swap(str(path), 8 * MIB, segment=SEGMENT)
    libc = ctypes.CDLL(None)
    child = libc.fork()
    if child == 0:
        libc.sleep(60)
        libc._exit(0)
    try:
        refusal(path)
        file.close()
        described(path, overwrite=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks is used all the same, and it is said."""

    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert "not locked" in described(tmp_path / "swap")["about"]


def mounted_device(options: str) -> list[str]:
    """What the children of test_mounted_device run: the errors of a mounted device, and of the file behind it."""
    import subprocess

    mounts.alone()
    with mounts.device(16 * MIB, 512) as name, tempfile.TemporaryDirectory() as place:
        subprocess.run(["mkfs.ext4", "-q", name], check=True, timeout=60)
        behind = Path(f"/sys/block/{Path(name).name}/loop/backing_file").read_text().strip()
        subprocess.run(["mount", "-o", options, name, place], check=True, timeout=60)
        try:
            said = [refusal(name)]
            if os.path.exists(behind):
                said.append(refusal(behind))
        finally:
            subprocess.run(["umount", place], check=True, timeout=60)
        assert described(name, size=4 * MIB, overwrite=True)["size"] == 4 * MIB
        assert place in said[0]
        return said


@pytest.mark.parametrize("options", ["rw", "ro"])
def test_mounted_device(options: str) -> None:
    """A device that is mounted, and be it read-only, is refused, and so is the file behind a loop device."""
    needs("ext4")
    said = run_child(mounted_device, args=[options]).json
    assert "it is mounted at /" in said[0]


def behind_a_device() -> str:
    """What the child of test_file_behind_device runs."""
    import subprocess

    with tempfile.NamedTemporaryFile() as image:
        os.truncate(image.fileno(), 16 * MIB)
        name = subprocess.run(
            ["losetup", "--find", "--show", image.name],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()
        try:
            return refusal(image.name)
        finally:
            subprocess.run(["losetup", "--detach", name], check=True, timeout=60)


def test_file_behind_device() -> None:
    """A file that is the inside of a loop device is refused."""
    needs("ext4")
    assert "it is the file behind /dev/loop" in run_child(behind_a_device).json


def swap_areas(kind: str, note: str) -> str:
    """What the children of test_swap_area run."""
    import subprocess

    mounts.alone()
    with contextlib.ExitStack() as undo:
        if kind == "device":
            name = undo.enter_context(mounts.device(16 * MIB, 4096))
        else:
            place = undo.enter_context(mounts.mounted("ext4", 64 * MIB))
            name = str(place / "swap")
            Path(name).write_bytes(bytes(16 * MIB))
            os.chmod(name, 0o600)
        subprocess.run(["mkswap", "-q", name], check=True, timeout=60, capture_output=True)
        Path(note).write_text(name)
        subprocess.run(["swapon", "-p", "0", name], check=True, timeout=60)
        try:
            return refusal(name)
        finally:
            subprocess.run(["swapoff", name], check=True, timeout=60)


@pytest.mark.parametrize("kind", ["device", "file"])
def test_swap_area(kind: str, tmp_path: Path) -> None:
    """What the kernel swaps to is refused, a device or a file."""
    import subprocess

    needs("4096" if kind == "device" else "ext4")
    note = tmp_path / "name"
    try:
        assert "a swap area of the kernel's" in run_child(swap_areas, args=[kind, str(note)]).json
    finally:  # a child that was killed has not turned it off
        if note.exists() and note.read_text() in Path("/proc/swaps").read_text():
            subprocess.run(["swapoff", note.read_text()], check=False, timeout=60)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/dev/zero", "neither a file nor a block device"),
        ("/proc/self/mem", "does not keep what is written to it"),
    ],
)
def test_no_file_for_blocks(path: str, says: str) -> None:
    """Overwrite or not, what keeps no bytes is refused."""
    with pytest.raises(OSError, match=says):
        uswap.Pager(limit=MIB, pool=4 * MIB, swapfile=path, swap=64 * MIB, overwrite=True)
