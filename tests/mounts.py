# SPDX-License-Identifier: MIT
"""File systems and devices of the tests' own, for what an ordinary disk does not show.

Used in children. Mounts are made in a mount namespace of the child's, so they go with its last process,
however that ends; loop devices are told at once to go when nobody has them open any more.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

__all__ = ["alone", "device", "mounted", "why_not"]

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def alone() -> None:
    """Give this process a mount namespace of its own; its children get the same one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mount namespace of one's own")


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def _image(size: int) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(suffix=".img")
    try:
        os.truncate(handle, size)
        os.close(handle)
        yield Path(name)
    finally:
        os.unlink(name)


@contextmanager
def mounted(kind: str, size: int, *, features: str = "", options: str = "") -> Iterator[Path]:
    """Mount a new file system. pre: alone().

    Args:
        kind: "tmpfs" or "ext4".
        size: bytes.
        features: of ext4, as for mkfs -O.
        options: of the mount.
    """
    place = Path(tempfile.mkdtemp())
    try:
        if kind == "tmpfs":
            _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
        else:
            with _image(size) as image:
                more = ["-O", features] if features else []
                _run("mkfs.ext4", "-q", "-m", "0", *more, image)
                _run("mount", "-o", f"loop,{options}" if options else "loop", image, place)
        try:
            yield place
        finally:
            _run("umount", place)
    finally:
        place.rmdir()


@contextmanager
def device(size: int, block: int) -> Iterator[str]:
    """Make a block device of `size` bytes whose logical blocks have `block` bytes."""
    with _image(size) as image:
        name = _run("losetup", "--find", "--show", "--sector-size", str(block), image)
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        _run("losetup", "--detach", name)  # when it is closed
    try:
        yield name
    finally:
        os.close(fd)


@cache
def why_not(what: str) -> str | None:
    """Return None if it can be had here, else why not, for pytest.skip.

    Args:
        what: "tmpfs", "ext4", or the block size of a device.
    """
    if os.geteuid() != 0:
        return "needs root"
    needs = ["mount"] if what == "tmpfs" else ["mount", "mkfs.ext4", "losetup"]
    if missing := [name for name in needs if shutil.which(name) is None]:
        return f"needs {missing[0]}"
    done = subprocess.run(
        [sys.executable, __file__, what], capture_output=True, text=True, timeout=60, check=False
    )
    return None if done.returncode == 0 else (done.stderr.splitlines() or ["?"])[-1]


def _main() -> None:
    what = sys.argv[1]
    alone()
    with device(16 << 20, int(what)) if what.isdigit() else mounted(what, 16 << 20):
        pass


if __name__ == "__main__":
    _main()
