# SPDX-License-Identifier: MIT
"""``uswap fsck``: is every object in a swap file readable, and what is in it."""

from __future__ import annotations

import argparse
import sys

from .. import fsck
from ..paths import say
from ..reporters import fsck as reporter
from ..reporters import json as json_reporter
from ..reporters.progress import ProgressLine
from .base import Command

__all__ = ["FsckCommand"]


class FsckCommand(Command):
    """Reads the whole file, and writes nothing."""

    description = (
        "Read the swap file of a live or killed pager and say of each segment how many objects are in "
        "it: the newest copy of their entry (live), superseded (dead), or bad. A file without a name "
        "is found as /proc/PID/fd/N of its pager. Exit status: 0 all is readable, 1 something is bad, "
        "2 it can't be read, or is no swap file."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("file", metavar="FILE", help="a swap file or block device")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument(
            "--all", action="store_true", help="show every segment, not just the bad ones and a few"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Check, print, and return whether anything is bad."""
        try:
            with ProgressLine() as progress:
                report = fsck.check(args.file, progress)
        except OSError as exc:
            print(f"uswap fsck: {say(exc)}", file=sys.stderr)
            return 2
        if args.json:
            print(json_reporter.render(report.as_dict()))
        else:
            print(reporter.render(report, most=None if args.all else 20))
        return 1 if report.bad else 0
