# SPDX-License-Identifier: MIT
"""The I/O engines of the swap file: their C test, under the sanitizers and as released."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "tests/c/io_test.c", ROOT / "csrc/io.c"]
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-pthread"]
SANITIZE = os.environ.get("USWAP_SANITIZE", "address,undefined")
BUILDS = {
    "sanitized": ["-O1", "-g", f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"],
    "released": ["-O2"],
}

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.mark.parametrize("build", list(BUILDS))
def test_engines_agree_with_the_file(build: str, tmp_path: Path) -> None:
    """Any mix of reads and writes, short, failing and flipped ones included, does what it says."""
    target = tmp_path / "io_test"
    command = ["gcc", *FLAGS, *BUILDS[build], "-o", str(target), *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [str(target), str(tmp_path / "file")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
