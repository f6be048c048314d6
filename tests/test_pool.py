# SPDX-License-Identifier: MIT
"""The pool of compressed blocks: its C test, under the sanitizers and as released."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "tests/c/pool_test.c", ROOT / "csrc/pool.c", ROOT / "csrc/alloc.c"]
FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
BUILDS = {
    "sanitized": [
        "-O1",
        "-g",
        "-DUS_DEBUG",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ],
    "released": ["-O2"],
}

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@pytest.fixture(scope="module", params=list(BUILDS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C test, compiled without a warning."""
    target = tmp_path_factory.mktemp("pool") / f"pool_test_{request.param}"
    command = ["gcc", *FLAGS, *BUILDS[request.param], "-o", str(target), *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


@pytest.mark.parametrize("seed", [1, 2, 3, 0x5EED])
def test_pool_agrees_with_its_model(program: Path, seed: int) -> None:
    """Any order of alloc, free, compact and budget keeps contents, invariants, bounds and used/allocated."""
    done = subprocess.run([str(program), str(seed)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
