# SPDX-License-Identifier: MIT
"""What `uswap config` prints."""

from __future__ import annotations

from collections.abc import Sequence

from ..options import Row
from ..sizes import AvailableMemory, format_size
from . import table

__all__ = ["render"]


def render(rows: Sequence[Row], memory: AvailableMemory, warnings: Sequence[str] = ()) -> str:
    """Return the table of options, what fractions are fractions of, and what is wrong."""
    columns = ("option", "value", "from", "default", "variable", "~what it is")
    cells = [
        (
            row.name,
            f"{row.value} (!)" if row.error else row.value,
            row.source,
            row.default,
            row.env,
            f"{row.doc} [{row.unit}]",
        )
        for row in rows
    ]
    lines = [
        table.render(columns, cells),
        "",
        f"Fractions are of {format_size(memory.bytes)} (from {memory.source}).",
        *(f"error: {row.error}" for row in rows if row.error),
        *(f"warning: {text}" for text in warnings),
    ]
    return table.page(lines)
