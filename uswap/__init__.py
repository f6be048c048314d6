# SPDX-License-Identifier: MIT
"""uswap: page a process's large buffers from user space.

    with uswap.Pager(limit="256MiB", pool="2GiB") as pager:
        a = pager.empty((40_000, 4_000))

Cold blocks are swapped out to a compressed pool; a touch swaps them in. See README.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    BufferRefusedError,
    ClosedError,
    DegradedWarning,
    LimitError,
    PagerDied,
    PagerStartError,
    StillPagedWarning,
    UnknownVariableWarning,
    UnsupportedKernelError,
    UswapError,
    UswapWarning,
)

if TYPE_CHECKING:
    from .client import Paged, Pager, paged
    from .region import LostDataError, OwnRegion, Region, WrappedRegion
    from .residency import STATES, Residency
    from .stats import KINDS, Latency, Stats
    from .tiers import File, Pool, TierStats

__version__ = "0.1.0"

__all__ = [
    "KINDS",
    "STATES",
    "BufferRefusedError",
    "ClosedError",
    "DegradedWarning",
    "File",
    "Latency",
    "LimitError",
    "LostDataError",
    "OwnRegion",
    "Paged",
    "Pager",
    "PagerDied",
    "PagerStartError",
    "Pool",
    "Region",
    "Residency",
    "Stats",
    "StillPagedWarning",
    "TierStats",
    "UnknownVariableWarning",
    "UnsupportedKernelError",
    "UswapError",
    "UswapWarning",
    "WrappedRegion",
    "paged",
]

_WHERE = {
    "Pager": "client",
    "Paged": "client",
    "paged": "client",
    "Region": "region",
    "OwnRegion": "region",
    "WrappedRegion": "region",
    "LostDataError": "region",
    "Residency": "residency",
    "STATES": "residency",
    "Stats": "stats",
    "Latency": "stats",
    "KINDS": "stats",
    "Pool": "tiers",
    "File": "tiers",
    "TierStats": "tiers",
}


def __getattr__(name: str) -> Any:
    # The pager process imports this package too, and needs nothing of the client's.
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
