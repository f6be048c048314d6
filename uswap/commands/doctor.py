# SPDX-License-Identifier: MIT
"""``uswap doctor``: what this machine lacks, what that costs, and what mends it."""

from __future__ import annotations

import argparse

from ..health import (
    Facts,
    Finding,
    Place,
    Status,
    gather,
    gather_place,
    judge,
    judge_place,
    self_test,
    worst,
)
from ..reporters import checks
from ..reporters import json as json_reporter
from ..reporters.progress import ProgressLine
from .base import Command

__all__ = ["DoctorCommand", "examine"]

_MEANING = {
    Status.OK: "all is well",
    Status.DEGRADED: "works, with the shortfalls named",
    Status.FAILED: "cannot work here",
}


class DoctorCommand(Command):
    """Looks at the kernel, privilege, limits and codecs, and pages a region to see that it works."""

    description = (
        "Look at what uswap needs of this machine, page a small region out and in, and say of each "
        "shortfall what it costs and what mends it. Exit status: 0 all is well, 1 degraded, 2 cannot "
        "work."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument(
            "--swapfile",
            metavar="DIR",
            help="look at a directory for swap files too: O_DIRECT and its alignment, free room, and a "
            "region paged through a file there, which is gone afterwards",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Examine, print, and return how bad it is."""
        with ProgressLine() as progress:
            progress("asking the kernel", 0.0)
            facts = gather()
            place = gather_place(args.swapfile) if args.swapfile is not None else None
            progress("self-test", 0.3)
            findings = examine(facts, place)
        status = worst(findings)
        if args.json:
            answer = {
                "status": status.name.lower(),
                "exit": int(status),
                "findings": [finding.as_dict() for finding in findings],
            }
            print(json_reporter.render(answer))
        else:
            print(checks.render(findings, _MEANING[status]))
        return int(status)


def examine(facts: Facts, place: Place | None = None) -> list[Finding]:
    """Judge the facts, and the place for swap files, and try it out if anything can be hoped for."""
    findings = judge(facts)
    if worst(findings) < Status.FAILED:
        findings.append(self_test(facts).judge())
    if place is not None:
        about_place = judge_place(place)
        if worst([*findings, *about_place]) < Status.FAILED:
            about_place.append(self_test(facts, swapfile=place.path).judge("swap test"))
        findings += about_place
    return findings
