# SPDX-License-Identifier: MIT
"""``uswap config``: the table of options with the values that are in force."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ..options import Row, describe
from ..sizes import available_memory, format_size
from .base import Command

__all__ = ["ConfigCommand"]


class ConfigCommand(Command):
    """Shows what a ``Pager()`` without arguments would use, here and now."""

    description = (
        "Show every option: its value here and now, where the value comes from, and the "
        "environment variable that sets it. Exit status 1 if a value is refused."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Print the table."""
        rows = describe()
        memory = available_memory()
        if args.json:
            print(
                json.dumps(
                    {"memory": memory._asdict(), "options": [row._asdict() for row in rows]},
                    indent=2,
                )
            )
        else:
            print(_table(rows))
            print()
            print(f"Fractions are of {format_size(memory.bytes)} (from {memory.source}).")
            for row in rows:
                if row.error:
                    print(f"error: {row.error}")
        return 1 if any(row.error for row in rows) else 0


def _table(rows: Sequence[Row]) -> str:
    cells = [("option", "value", "from", "default", "variable", "what it is")]
    for row in rows:
        value = f"{row.value} (!)" if row.error else row.value
        what = f"{row.doc} [{row.unit}]"
        cells.append((row.name, value, row.source, row.default, row.env, what))
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = []
    for line in cells:
        fixed = [text.ljust(width) for text, width in zip(line, widths, strict=False)]
        lines.append("  ".join([*fixed, line[5]]))
    return "\n".join(lines)
