# SPDX-License-Identifier: MIT
"""The delays that tests have the pager make: a seed gives them, so that they can be had again."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from compiled import ROOT, fresh, shared

FAULTS_BY = ("inline", "message")

COUNT = 50


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """csrc/sys.c by itself."""
    out = tmp_path_factory.mktemp("sys") / "sys.so"
    return shared(out, ROOT / "csrc/sys.c", ROOT / "csrc/alloc.c")


def picks(core: ctypes.CDLL) -> list[int]:
    """The calling thread's next delays."""
    return [core.us_delay_pick(1000) for _ in range(COUNT)]


def of_another_thread(core: ctypes.CDLL) -> list[int]:
    """The first delays of a new thread."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(picks(core)))
    thread.start()
    thread.join()
    return found


def test_seed(library: Path, tmp_path: Path) -> None:
    """The same seed gives each thread the same delays again; another seed and another thread give others."""
    runs = []
    for number, seed in enumerate((None, 1, 7, 7, 8, (1 << 32) - 1)):
        place = tmp_path / str(number)
        place.mkdir()
        core = fresh(library, place)
        if seed is not None:
            assert core.us_delay_set(b"seed", ctypes.c_uint32(seed)) == 0
        runs.append([of_another_thread(core) for _ in range(3)])
    default, one, seven, again, eight, largest = runs
    assert default == one
    assert seven == again
    sequences = [tuple(part) for run in (one, seven, eight, largest) for part in run]
    assert len(set(sequences)) == 12
    assert all(0 <= pick < 1000 for part in sequences for pick in part)
    assert all(len(set(part)) > COUNT // 2 for part in sequences)
    assert core.us_delay_set(b"nowhere", 1) < 0
