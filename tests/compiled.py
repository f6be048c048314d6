# SPDX-License-Identifier: MIT
"""The programs in C that test codecs and filters: compiled here, run by a library outside or inside an interpreter."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MISSING = 77  # the program's exit status when it can't load the library
WARNINGS = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-pthread"]


def gcc(out: Path, *arguments: str | Path) -> Path:
    """Compile and link *out*."""
    subprocess.run(["gcc", *WARNINGS, f"-I{ROOT / 'csrc'}", "-o", out, *arguments], check=True)
    return out


def shared(out: Path, *sources: str | Path) -> Path:
    """Compile a shared object; undefined behaviour traps, so no runtime is preloaded."""
    trap = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    return gcc(out, "-shared", "-fPIC", *trap, *sources, "-ldl")


def fresh(library: Path, directory: Path) -> ctypes.CDLL:
    """Load a core that has loaded nothing: a copy, which the loader takes for another library."""
    copy = directory / "core.so"
    copy.write_bytes(library.read_bytes())
    return ctypes.CDLL(os.fspath(copy))


def check(command: list[str | Path]) -> None:
    """Run a test program."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == MISSING:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
