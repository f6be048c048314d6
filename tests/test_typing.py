# SPDX-License-Identifier: MIT
"""What a type checker sees of the package: mypy --strict, on programs that use it."""

from __future__ import annotations

import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from uswap.options import OPTIONS, PagerOptions

#: Lines that are wrong say so: "# E: " and a part of mypy's message.
PROGRAM = """\
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import uswap

pager = uswap.Pager(
    limit="1GiB", pool=0.25, block=np.int64(4096), codec="zstd", level=3, swapfile=pathlib.Path("/x"),
    swap="1GiB", trace=pathlib.Path("/y"), workers=2, pager_timeout=5,
)
uswap.Pager(codc="zstd")  # E: Unexpected keyword argument "codc"
uswap.Pager(codec=5)  # E: Argument "codec"
uswap.Pager(limit=[1])  # E: Argument "limit"
uswap.Pager(tiers=[uswap.Pool("1GiB", codec="zstd"), uswap.File("/x", np.int64(1 << 30))])
uswap.Pager(tiers=["pool"])  # E: List item 0 has incompatible type "str"
with uswap.paged(bytearray(1 << 20), limit=0.5, block="64KiB", swap="1GiB", overwrite=True) as p:
    assert_type(p.regions, list[uswap.WrappedRegion])
uswap.paged(bytearray(1 << 20), limt=0.5)  # E: Unexpected keyword argument "limt"

assert_type(pager.empty((3, 4)), npt.NDArray[np.float64])
assert_type(pager.empty(3, float), npt.NDArray[np.float64])
assert_type(pager.empty(3, np.float32), npt.NDArray[np.float32])
assert_type(pager.empty([3], np.dtype(np.int16)), npt.NDArray[np.int16])
assert_type(pager.empty(3, "i2"), npt.NDArray[Any])
assert_type(pager.zeros(np.int64(3), np.uint8, order="F", block="64KiB"), npt.NDArray[np.uint8])
assert_type(pager.full(3, np.float32(2)), npt.NDArray[np.float32])
assert_type(pager.full(3, 2, np.int32), npt.NDArray[np.int32])
assert_type(pager.full(3, 2), npt.NDArray[Any])
assert_type(pager.array(np.ones(3, np.int8)), npt.NDArray[np.int8])
assert_type(pager.array([1, 2], np.int64), npt.NDArray[np.int64])
assert_type(pager.array([1, 2]), npt.NDArray[Any])
pager.empty(3, order="X")  # E: No overload variant of "empty"

region = pager.region(np.int64(4096), block="64KiB", itemsize=np.int8(8))
assert_type(region, uswap.OwnRegion)
region.evict(np.int64(4096), np.uint8(5))
region.evict("4KiB")  # E: Argument 1 to "evict"
pager.limit = "1GiB"
assert_type(pager.stats().tiers[0], uswap.TierStats)
"""


def test_program(tmp_path: Path) -> None:
    """Arrays have the dtype asked for; misspelt options and wrong kinds of values are found, and no more."""
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "mypy",
                "--strict",
                "--no-error-summary",
                "--hide-error-context",
            ),
            # NumPy's types are written for the newest Python.
            *("--python-version", "3.12", "--config-file=", "--cache-dir", str(tmp_path / "cache")),
            "program.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = re.findall(r"^program.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    expected = {
        number: line.partition("# E: ")[2]
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if "# E: " in line
    }
    assert [int(number) for number, _ in found] == list(expected), done
    for number, message in found:
        assert expected[int(number)] in message


def test_every_option_is_typed() -> None:
    """The keywords that have types are the rows of the table but for those of the signature."""
    hints = typing.get_type_hints(PagerOptions)
    named = ["limit", "pool", "swapfile", "swap"]
    assert sorted([*hints, *named]) == sorted(option.name for option in OPTIONS)
