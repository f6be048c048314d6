# SPDX-License-Identifier: MIT
"""What every command is."""

from __future__ import annotations

import abc
import argparse

__all__ = ["Command"]


class Command(abc.ABC):
    """One command of ``uswap``: one class, one file.

    The one-line help stands in the table in ``uswap/commands/__init__.py``, so that
    ``uswap --help`` need not import every command.
    """

    description: str = ""
    """What ``uswap COMMAND --help`` says above the arguments."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 - may be empty
        """Declare the command's arguments."""

    @abc.abstractmethod
    def run(self, args: argparse.Namespace) -> int:
        """Do it, and return the exit status."""
