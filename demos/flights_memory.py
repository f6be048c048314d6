# SPDX-License-Identifier: MIT
"""Memory of processes, as the kernel counts it, over the time of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Result = dict[str, Any]


def memory_of(pid: int | str) -> dict[str, int]:
    """Bytes of RSS: now, at its peak, and the part that is shared memory; empty if it is gone."""
    wanted = {"VmRSS": "rss", "VmHWM": "peak", "RssShmem": "shared"}
    out = {}
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                key, _, value = line.partition(":")
                if key in wanted:
                    out[wanted[key]] = int(value.split()[0]) << 10
    except (OSError, IndexError):
        pass
    return out


@dataclass
class Sample:
    """Memory at one moment; seconds since the run began, and bytes."""

    at: float
    process: int
    resident: int = 0
    pager: int = 0

    @property
    def total(self) -> int:
        """The process and its pager, whose pool is in its own RSS."""
        return self.process + self.pager


@dataclass
class Run:
    """What one run gave."""

    result: Result
    samples: list[Sample] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)
    """When each phase began, on the samples' clock."""
    pool: dict[str, int] = field(default_factory=dict)
    """The pool when it was fullest."""
    file: dict[str, int] = field(default_factory=dict)
    """The swap file when it was fullest."""
