# SPDX-License-Identifier: MIT
"""``uswap config``: the table of options with the values that are in force."""

from __future__ import annotations

import argparse

from ..options import describe, unknown_variables
from ..reporters import json as json_reporter
from ..reporters import options as reporter
from ..sizes import available_memory
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
            answer = {
                "memory": memory._asdict(),
                "options": [row._asdict() for row in rows],
                "warnings": unknown_variables(),
            }
            print(json_reporter.render(answer))
        else:
            print(reporter.render(rows, memory, unknown_variables()))
        return 1 if any(row.error for row in rows) else 0
