# SPDX-License-Identifier: MIT
"""What residency() returns: where the bytes of a region are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .sizes import format_size

__all__ = ["STATES", "Residency"]

STATES = ("empty", "resident", "leaving", "outbox", "filled", "pooled", "stored", "lost")


@dataclass(frozen=True)
class Residency:
    """Where the bytes of a region are, in bytes of the region, by the state of its blocks."""

    length: int
    resident: int
    """In RAM, uncompressed, in the client's pages."""
    leaving: int
    outbox: int
    """Taken out and not compressed yet."""
    filled: int
    """Of one repeated word, which takes no memory."""
    pooled: int
    """Compressed in a pool."""
    stored: int
    """Compressed in the swap file."""
    lost: int
    """Unreadable: a touch is SIGBUS."""
    empty: int
    """Never touched."""
    block: int
    states: bytes
    """The state of each block, as an index of uswap.STATES."""
    tiers: Mapping[str, int]
    """Of pooled and stored: in which tier, by name, hot to cold."""

    @property
    def fraction(self) -> float:
        """The resident part, 0 to 1; 1.0 of no bytes."""
        return self.resident / self.length if self.length else 1.0

    def __repr__(self) -> str:
        # A state a byte, `states` of a large region has millions.
        where = {name: getattr(self, name) for name in ("resident", "leaving", "outbox")}
        where |= self.tiers
        where |= {name: getattr(self, name) for name in ("filled", "empty", "lost")}
        parts = ", ".join(f"{name} {format_size(n)}" for name, n in where.items() if n)
        return (
            f"<uswap.Residency of {format_size(self.length)} in blocks of {format_size(self.block)}"
            f"{': ' if parts else ''}{parts}>"
        )
