# SPDX-License-Identifier: MIT
"""A block's generation comes round: what was begun on older bytes of the same number is not taken for the present ones."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDS = ("csrc", "uswap", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")

# One block is written and evicted again and again, while a worker still compresses what it held before.
CHILD = """
import sys, threading, time
import uswap

with uswap.Pager(limit="1MiB", pool="8MiB", block="4KiB", readahead=0, delays="compress:20000") as pager:
    region = pager.region(64 << 10)
    view = memoryview(region)
    stop = threading.Event()

    def evict():
        while not stop.is_set():
            region.evict(0, 4 << 10)

    threads = [threading.Thread(target=evict) for _ in range(6)]
    for thread in threads:
        thread.start()
    end, turn, wrong = time.monotonic() + 4, 0, ""
    while time.monotonic() < end and not wrong:
        turn += 1
        view[:8] = turn.to_bytes(8, "little")
        time.sleep(0.0003 if turn % 50 else 0.1)
        found = int.from_bytes(view[:8], "little")
        if found != turn:
            wrong = f"after {turn} writes the block holds what was written {turn - found} writes before"
    stop.set()
    for thread in threads:
        thread.join()
    pager.check()
    assert wrong or turn > 100, turn
sys.exit(wrong or 0)
"""


@pytest.mark.skipif(
    shutil.which("gcc") is None
    or any(importlib.util.find_spec(n) is None for n in ("pip", "setuptools", "cffi")),
    reason="needs gcc, pip and setuptools",
)
def test_generation_comes_round(tmp_path: Path) -> None:
    """The core with generations of 4 bits, one block changed thousands of times: the bytes read are those written last."""
    source = tmp_path / "source"
    source.mkdir()
    for name in NEEDS:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
            )
        else:
            shutil.copy(ROOT / name, source / name)
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(source),
        ],
        env={**os.environ, "CFLAGS": "-DUS_GEN_BITS=4"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
