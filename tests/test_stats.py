# SPDX-License-Identifier: MIT
"""What stats() and residency() look like to a person: one short line each."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import uswap
from uswap.stats import KINDS, Latency, Stats

from child import run_child
from workload import KIB, MIB, data, evicted


def stats(**values: Any) -> Stats:
    """Statistics in which all is 0 but what is given."""
    zeros: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(Stats)}
    zeros |= {
        "faults": dict.fromkeys(KINDS, 0),
        "latency": dict.fromkeys(KINDS, Latency(0, 0, 0, 0, 0, 0)),
        "tiers": (),
    }
    return Stats(**(zeros | values))


def test_nothing_that_matters_is_left_out() -> None:
    """The file tier is there where there is a file; what went wrong is there where it did."""
    quiet = str(stats(limit=MIB, resident=MIB // 2))
    assert "resident 512 KiB of 1 MiB" in quiet
    for word in ("stored", "lost", "over the limit", "without room", "errors", "missed"):
        assert word not in quiet, word
    text = str(
        stats(
            swap=64 * MIB,
            swap_used=8 * MIB,
            stored_raw=12 * MIB,
            stored=6 * MIB,
            lost=32 * KIB,
            over_limit=1234,
            refused_noroom=5,
            write_errors=6,
            trace_missed=7,
        )
    )
    for words in (
        "stored 12 MiB in 6 MiB (swap file 8 MiB of 64 MiB)",
        "lost 32 KiB",
        "faults over the limit 1,234",
        "evictions without room 5",
        "write errors 6",
        "trace records missed 7",
    ):
        assert words in text, words


def test_repr_is_the_line_that_print_shows() -> None:
    """A notebook shows repr(); a dataclass's own would be 2,000 characters of counters."""
    one = stats(faults=dict.fromkeys(KINDS, 123_456))
    assert repr(one) == f"<uswap.Stats {one}>"
    assert len(repr(one)) < 500
    assert "\n" not in repr(one)


def reprs() -> None:
    """What the child of test_reprs_of_a_pager runs."""
    tiers = [uswap.Pool(MIB), uswap.Pool(16 * MIB, codec="zstd", name="dense")]
    with uswap.Pager(limit=MIB, tiers=tiers, readahead=0) as pager:
        region = pager.region(4 * MIB)
        memoryview(region)[:] = data("half", 4 * MIB, random.Random(1))
        evicted(region)
        shown = region.residency()
        assert repr(shown).startswith("<uswap.Residency of 4 MiB in blocks of 4 KiB: ")
        assert "dense" in repr(shown)
        assert str(shown) == repr(shown)
        assert len(repr(shown)) < 200
        assert len(shown.states) == 1024
        nothing = region.residency(0, 0)
        assert repr(nothing) == "<uswap.Residency of 0 B in blocks of 4 KiB>"
        assert nothing.fraction == 1.0
        assert len(repr(pager.stats())) < 500


def test_reprs_of_a_pager() -> None:
    """A region of millions of blocks has as short a line: states stays an attribute, not shown."""
    run_child(reprs, timeout=60)
