# SPDX-License-Identifier: MIT
"""The ``uswap`` command line.

A command is a class in a file of its own. It is imported only when it is the one asked for, so one
command's imports never slow down or break another. To add a command, write its file and add a line
to ``COMMANDS``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from .. import __version__
from ..errors import UswapError
from .base import Command

__all__ = ["COMMANDS", "Entry", "main"]


class Entry(NamedTuple):
    """A command: its name, the module below this package and the class in it, one line of help."""

    name: str
    module: str
    cls: str
    help: str

    def load(self) -> Command:
        """Import and make the command."""
        module = importlib.import_module(f"{__name__}.{self.module}")
        command = getattr(module, self.cls)()
        assert isinstance(command, Command)
        return command


COMMANDS: tuple[Entry, ...] = (
    Entry("config", "config", "ConfigCommand", "show every option, its value and where it is from"),
    Entry("bench", "bench", "BenchCommand", "measure what paging costs here"),
    Entry("doctor", "doctor", "DoctorCommand", "say what this machine lacks and what mends it"),
    Entry("fsck", "fsck", "FsckCommand", "check a swap file and say what is in it"),
    Entry("trace", "trace", "TraceCommand", "show a trace, or replay it through other policies"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 if it could not be carried out."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(argv).parse_args(argv)
    try:
        status = args.command.run(args)
        sys.stdout.flush()  # a closed pipe shows here, not at exit
        return int(status)
    except UswapError as exc:
        print(f"uswap {args.name}: {exc}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `uswap config | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="uswap", description="Page a process's large buffers from user space."
    )
    parser.add_argument("--version", action="version", version=f"uswap {__version__}")
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)
    # No option before the command takes a value, so the first plain word is the command.
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for entry in COMMANDS:
        sub = commands.add_parser(entry.name, help=entry.help)
        if entry.name == chosen:
            command = entry.load()
            sub.description = command.description or entry.help
            command.add_arguments(sub)
            sub.set_defaults(command=command)
    return parser
