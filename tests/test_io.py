# SPDX-License-Identifier: MIT
"""The I/O engines of the swap file: csrc/io.c, tested by a C program on a disk and in memory."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).resolve().parents[1]
SANITIZE = os.environ.get("USWAP_SANITIZE", "address,undefined")
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-pthread"]
BUILDS = {
    "sanitized": ["-O1", "-g", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"],
    "released": ["-O2"],
}


@pytest.fixture(scope="module", params=list(BUILDS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C test, compiled without a warning."""
    target = tmp_path_factory.mktemp("io") / "io_test"
    sources = [ROOT / "tests/c/io_test.c", *(ROOT / f"csrc/{n}.c" for n in ("io", "sys", "alloc"))]
    command = ["gcc", *WARNINGS, *BUILDS[request.param], "-o", target, *sources]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.parametrize("program", ["sanitized"], indirect=True)
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("io_uring_setup", "EPERM"),
        ("io_uring_setup", "ENOSYS"),
        ("io_uring_enter", "EPERM"),
        ("io_uring_register", "EPERM"),
    ],
)
def test_io_uring_refused(program: Path, call: str, error: str) -> None:
    """Where a filter refuses io_uring, or a part of it, asking for it says so, and AUTO is threads."""
    with TemporaryDirectory(prefix="uswap-io-") as directory:
        done = subprocess.run(
            [sys.executable, ROOT / "tests/seccomp.py", call, error, program, f"{directory}/file"],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"io_uring: refused ({os.strerror(getattr(errno, error))})" in done.stdout
    assert "io_uring: good" not in done.stdout
    assert "threads: good" in done.stdout


@pytest.mark.parametrize("place", [None, "/dev/shm"], ids=["temporary", "tmpfs"])
@pytest.mark.parametrize("seed", [1, random.randrange(2**32)], ids=["one", "random"])
def test_engines_do_what_was_asked(program: Path, place: str | None, seed: int) -> None:
    """Contents, slots, failures, short ones, flipped bits and closing early, by both engines.

    With O_DIRECT and through the page cache, in which nothing may stay.
    """
    with TemporaryDirectory(dir=place, prefix="uswap-io-") as directory:
        done = subprocess.run(
            [program, f"{directory}/file", str(seed)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "threads: good" in done.stdout
    assert "io_uring: good" in done.stdout or "io_uring: refused" in done.stdout
