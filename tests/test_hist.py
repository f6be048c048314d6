# SPDX-License-Identifier: MIT
"""The latency histogram: csrc/hist.c, tested by a C program."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WARNINGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program, with sanitizers."""
    out = tmp_path_factory.mktemp("hist") / "hist_test"
    sources = [ROOT / "tests/c/hist_test.c", ROOT / "csrc/hist.c"]
    flags = [*WARNINGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        ["gcc", *flags, f"-I{ROOT / 'csrc'}", "-o", out, *sources, "-lm", "-pthread"], check=True
    )
    return out


@pytest.mark.parametrize("seed", [1, random.randrange(2**32)])
def test_quantiles_agree_with_a_sorted_array(program: Path, seed: int) -> None:
    """Within 1/32 at every per mille; merging adds; a reader beside the writer sees sense."""
    done = subprocess.run(
        [program, str(seed)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
