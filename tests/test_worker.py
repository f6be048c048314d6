# SPDX-License-Identifier: MIT
"""The workers' queues and what they bring in, by a program in C (tests/c/worker_test.c)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from compiled import ROOT, check, gcc

BUILDS = {
    "sanitized": [
        f"-fsanitize={os.environ.get('USWAP_SANITIZE', 'address,undefined')}",
        "-fno-sanitize-recover=all",
    ],
    "threads": ["-fsanitize=thread"],
    "released": ["-O2"],
}


@pytest.mark.parametrize("build", list(BUILDS))
def test_workers(build: str, tmp_path: Path) -> None:
    """Results come in the order of their jobs; neighbours come in one copy, each whole or not at all."""
    names = ("worker", "choice", "codec", "filter", "alloc", "sys")
    sources = [ROOT / "tests/c/worker_test.c", *(ROOT / f"csrc/{name}.c" for name in names)]
    flags = ["-D_GNU_SOURCE", "-Wl,--wrap=us_sys_copy"]
    program = gcc(tmp_path / "worker_test", *flags, *BUILDS[build], *sources, "-ldl")
    for seed in ("1", str(random.randrange(2**32))):
        check([program, seed])
