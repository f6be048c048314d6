# SPDX-License-Identifier: MIT
"""What README.md shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from child import run_child

README = Path(__file__).parents[1] / "README.md"


def test_first_example() -> None:
    """The first block of code, with the data and the sizes that it has."""
    pytest.importorskip("numpy")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert "uswap" in blocks[0]
    done = run_child(blocks[0], timeout=120)
    first, *_ = done.stdout.split()
    assert float(first) == 40_000 * sum(range(4_000))
    assert done.stdout.split()[-1] == str((1 << 26) - 1)
