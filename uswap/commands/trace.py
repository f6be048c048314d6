# SPDX-License-Identifier: MIT
"""``uswap trace``: what a trace holds, and what other policies would have made of it."""

from __future__ import annotations

import argparse
import sys
from array import array
from collections.abc import Callable, Sequence

from ..errors import UswapError
from ..paths import say
from ..reporters import json as json_reporter
from ..reporters import trace as reporter
from ..reporters.progress import ProgressLine
from ..sizes import format_size, parse_size
from ..trace import Trace, patterns, read
from ..trace.policies import POLICIES
from ..trace.reuse import distances
from ..trace.simulate import Result, simulate
from .base import Command

__all__ = ["TraceCommand"]

LIMITS = "1/4,1/16"
BLOCKS, ACCESSES = 16384, 500_000


class BadSource(UswapError):
    """There is nothing in a trace that could be replayed as was asked."""


class TraceCommand(Command):
    """``show`` and ``simulate``."""

    description = (
        "A trace is written by a pager with trace=FILE (or USWAP_TRACE=FILE in its environment; a "
        "directory makes one file for each pager). It has every fault and eviction, so every miss of the "
        "policy in force; accesses to what is resident are not seen. To have nearly every access in it "
        "for `simulate`, record with a limit of few blocks and without read-ahead, such as "
        "USWAP_LIMIT=1MiB USWAP_READAHEAD=0."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the subcommands."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        show = actions.add_parser(
            "show",
            help="regions, faults by kind, evictions, reuse distances",
            description="Regions, faults by kind, evictions, and how far apart accesses to a block are.",
        )
        show.set_defaults(act=_show)
        show.add_argument("file", metavar="FILE", help="a trace")
        show.add_argument("--json", action="store_true", help="print JSON")
        replay = actions.add_parser(
            "simulate",
            help="misses of several policies for the same accesses",
            description=(
                "Replay the accesses of a trace, or made ones, through policies for replacement. Those that "
                "see faults only could be a pager's; those that see all are bounds. "
                + " ".join(f"{name}: {policy.about}." for name, policy in POLICIES.items())
                + " A soft fault is one on a block that was unmapped and still in RAM."
            ),
        )
        replay.set_defaults(act=_simulate)
        replay.add_argument("file", metavar="FILE", nargs="?", help="a trace")
        replay.add_argument(
            "--pattern",
            type=_names("pattern", list(patterns.PATTERNS)),
            metavar="NAME,...",
            help="made accesses in place of a trace: "
            + "; ".join(f"{name}: {about}" for name, (about, _) in patterns.PATTERNS.items()),
        )
        replay.add_argument(
            "--limit",
            type=_limits,
            default=_limits(LIMITS),
            metavar="SIZE,...",
            help="what may be resident: parts of the different blocks (1/4, 0.25), bytes (64MiB; with a "
            f"trace only), or blocks (512b) (default: {LIMITS})",
        )
        replay.add_argument(
            "--policy",
            type=_names("policy", list(POLICIES)),
            default=list(POLICIES),
            metavar="NAME,...",
            help="(default: all)",
        )
        replay.add_argument(
            "--region", type=int, metavar="N", help="only the region at this place in `show`"
        )
        replay.add_argument(
            "--blocks",
            type=_count(2),
            metavar="N",
            help=f"with --pattern: different blocks (default: {BLOCKS})",
        )
        replay.add_argument(
            "--accesses",
            type=_count(1),
            metavar="N",
            help=f"with --pattern: how many (default: {ACCESSES})",
        )
        replay.add_argument(
            "--seed", type=_count(0), metavar="N", help="with --pattern (default: 1)"
        )
        replay.add_argument("--json", action="store_true", help="print JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Do it."""
        try:
            status = args.act(args)
        except OSError as exc:
            print(f"uswap trace: {say(exc)}", file=sys.stderr)
            return 2
        assert isinstance(status, int)
        return status


def _show(args: argparse.Namespace) -> int:
    trace = read(args.file)
    reuse = distances(trace.accesses())
    if args.json:
        print(json_reporter.render(reporter.show_dict(trace, reuse)))
    else:
        print(reporter.show(trace, reuse))
    return 0


def _simulate(args: argparse.Namespace) -> int:
    if args.file is None and args.pattern is None:
        raise BadSource("there are no accesses to replay; accepted: a FILE, or --pattern")
    if args.file is not None and args.pattern is not None:
        raise BadSource(f"FILE={args.file} is given beside --pattern; accepted: one or the other")
    for name in ("blocks", "accesses", "seed"):
        if args.file is not None and getattr(args, name) is not None:
            raise BadSource(f"--{name} says nothing of a FILE; accepted: only with --pattern")
    if args.file is None and args.region is not None:
        raise BadSource("--region says nothing of made accesses; accepted: only with a FILE")
    results: list[Result] = []
    blocks: dict[str, int | None] = {}
    with ProgressLine() as progress:
        if args.file is not None:
            trace = read(args.file)
            accesses, block = _accesses(trace, args.region)
            sources = [(args.file, accesses)]
        else:
            block = None
            made = {
                "blocks": BLOCKS if args.blocks is None else args.blocks,
                "accesses": ACCESSES if args.accesses is None else args.accesses,
                "seed": 1 if args.seed is None else args.seed,
            }
            sources = [(name, patterns.make(name, **made)) for name in args.pattern]
        for name, accesses in sources:
            sizes = _sizes(args.limit, block)
            blocks[name] = block
            results.append(simulate(name, accesses, sizes, args.policy, progress))
    if args.json:
        print(
            json_reporter.render(
                {"block": block, "results": [result.as_dict() for result in results]}
            )
        )
    else:
        print(reporter.simulated(results, blocks))
    return 0


def _accesses(trace: Trace, region: int | None) -> tuple[array[int], int]:
    """The accesses of a trace, and the bytes of a block."""
    if region is not None and not 0 <= region < len(trace.regions):
        raise BadSource(
            f"--region={region}: {trace.path} has {len(trace.regions)} regions; accepted: 0 to "
            f"{len(trace.regions) - 1}"
        )
    chosen = trace.regions if region is None else [trace.regions[region]]
    sizes = sorted({one.block for one in chosen})
    if len(sizes) > 1:
        raise BadSource(
            f"{trace.path} has blocks of {', '.join(map(format_size, sizes))}, and a policy is "
            "simulated for one size; accepted: --region with the place in `uswap trace show` of one region"
        )
    accesses = trace.accesses(region)
    if not accesses:
        raise BadSource(f"{trace.path} has no accesses that could be replayed")
    return accesses, sizes[0]


# ---- values of arguments


Size = Callable[[int, "int | None"], int]


def _sizes(limits: Sequence[Size], block: int | None) -> Callable[[int], list[int]]:
    return lambda blocks: list(dict.fromkeys(limit(blocks, block) for limit in limits))


def _limits(text: str) -> list[Size]:
    return [_limit(part) for part in text.split(",")]


def _limit(text: str) -> Size:
    """A size of memory in blocks, of how many different blocks there are and what bytes one has."""
    accepted = "accepted: a part above 0 and at most 1 (1/4, 0.25), bytes (64MiB), or blocks (512b)"
    wrong = argparse.ArgumentTypeError(f"limit={text!r}; {accepted}")
    try:
        if text.endswith("b") and text[:-1].isdigit():
            number = int(text[:-1])
            if number < 1:
                raise wrong
            return lambda _blocks, _block: number
        if text[-1:].isalpha():
            size = parse_size(text, "limit", minimum=1)

            def of_bytes(_blocks: int, block: int | None) -> int:
                if block is None:
                    raise BadSource(
                        f"--limit={text}: made accesses have no bytes; accepted: parts, or blocks (512b)"
                    )
                if size < block:
                    raise BadSource(
                        f"--limit={text} is less than a block of {format_size(block)}; accepted: one block "
                        "or more"
                    )
                return size // block

            return of_bytes
        above, _, below = text.partition("/")
        part = float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        raise wrong from None
    if not 0 < part <= 1:
        raise wrong
    return lambda blocks, _block: max(1, int(blocks * part))


def _names(what: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"{what}={name!r} is unknown; accepted: {', '.join(known)}"
                )
        return names

    return parse


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}; accepted: an integer from {least} on")
        return int(text)

    return parse
