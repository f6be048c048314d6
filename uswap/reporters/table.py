# SPDX-License-Identifier: MIT
"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["render"]


def render(columns: Sequence[str], rows: Iterable[Sequence[str | None]], *, gap: str = "  ") -> str:
    """Return a table, a line a row; what does not apply (None) is shown as a dash.

    Args:
        columns: headings. One that begins with ">" (not shown) is of a column of numbers, which
            stand to the right.
        gap: what stands between two columns.
    """
    right = [column.startswith(">") for column in columns]
    lines = [[column.removeprefix(">") for column in columns]]
    lines += [["-" if cell is None else cell for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        gap.join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )
