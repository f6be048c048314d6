# SPDX-License-Identifier: MIT
"""The log of segments: its C test, under the sanitizers and as released."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "tests/c/segment_test.c", ROOT / "csrc/segment.c", ROOT / "csrc/alloc.c"]
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
SANITIZE = os.environ.get("USWAP_SANITIZE", "address,undefined")
BUILDS = {
    "sanitized": [
        "-O1",
        "-g",
        "-DUS_DEBUG",
        f"-fsanitize={SANITIZE}",
        "-fno-sanitize-recover=all",
    ],
    "released": ["-O2"],
}

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="module", params=list(BUILDS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C test, compiled without a warning."""
    target = tmp_path_factory.mktemp("segment") / f"segment_test_{request.param}"
    command = ["gcc", *FLAGS, *BUILDS[request.param], "-o", str(target), *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.parametrize("seed", [1, 2, 3, 0x5EED])
def test_log_agrees_with_its_model(program: Path, seed: int) -> None:
    """Any order of packing, writes, deaths, reads and compaction keeps contents, accounts and free segments.

    Before that: crc32c by instructions and by tables agree, each flipped bit of a segment is found,
    and an object of a former use of its segment is refused.
    """
    done = subprocess.run([str(program), str(seed)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
