# SPDX-License-Identifier: MIT
"""``uswap bench peers``: arguments, and what is done with the result."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..options import parse_block
from ..reporters import json as json_reporter
from ..reporters.progress import ProgressLine
from ..sizes import format_size, parse_size

__all__ = ["add_arguments", "run"]

MIB = 1 << 20
# bench.peers and bench.subject have the same, and need not be imported for --help.
PEERS = ("uswap", "zram", "naive", "zswap", "memmap", "plain")
WORKS = (
    *("read", "rmw", "strided", "random", "zipf", "write"),
    *("random2", "write2", "loaded", "matmul", "sort"),
)
DATA = ("int64", "walk", "float32", "text", "random")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--peers",
        type=_names(PEERS),
        default=PEERS,
        metavar="PEER,...",
        help=f"what is compared (default: all): {', '.join(PEERS)}",
    )
    parser.add_argument(
        "--work",
        type=_names(WORKS),
        default=WORKS,
        metavar="WORK,...",
        help=f"workloads (default: all): {', '.join(WORKS)}",
    )
    parser.add_argument(
        "--data",
        type=_names(DATA),
        default=("int64",),
        metavar="DATA,...",
        help="int64: integers below 1000 (default); walk: a random walk of float64; float32: normally "
        "distributed; text; random, which does not compress",
    )
    parser.add_argument(
        "--over",
        type=_overs,
        default=(4,),
        metavar="N,...",
        help="how many times the limit the data are (default: 4)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=256 * MIB,
        metavar="SIZE",
        help="bytes of data where what is out stays in RAM (default: 256MiB)",
    )
    parser.add_argument(
        "--disk-size",
        type=_size,
        default=1024 * MIB,
        metavar="SIZE",
        help="bytes of data where what is out goes to a disk (default: 1GiB)",
    )
    parser.add_argument(
        "--rounds",
        type=_rounds,
        default=5,
        metavar="N",
        help="how often each peer is measured, in turn (default: 5)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=0.4,
        metavar="S",
        help="of each workload and round; a sequential pass may take 6 times as long (default: 0.4)",
    )
    parser.add_argument(
        "--dir",
        type=_directory,
        default="/var/tmp",
        metavar="DIR",
        help="where swap files and the mapped file are made (default: /var/tmp)",
    )
    parser.add_argument(
        "--block",
        type=_blocks,
        default=(),
        metavar="SIZE,...",
        help="block sizes of uswap, each measured by itself (default: uswap's own default)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw all of it into a .png, .svg or .pdf file (needs matplotlib)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and print."""
    from ..bench import peers
    from ..reporters import peers as reporter

    config = peers.Peers(
        peers=args.peers,
        work=args.work,
        data=args.data,
        over=args.over,
        size=args.size,
        disk_size=args.disk_size,
        rounds=args.rounds,
        seconds=args.seconds,
        directory=args.dir,
        blocks=args.block,
    )
    for group in config.groups():
        for over in config.over:
            limit = config.limit_of(group, over)
            if limit < peers.LEAST:
                name = "--size" if group == "pooled" else "--disk-size"
                print(
                    f"uswap bench: {name} {format_size(config.size_of(group))} is too small for --over "
                    f"{over}: of it {format_size(limit)} may be resident; accepted: "
                    f"{format_size(peers.LEAST)} or more",
                    file=sys.stderr,
                )
                return 2
    try:
        with ProgressLine() as progress:
            result = peers.measure(config, progress)
    except peers.SubjectFailed as exc:
        print(f"uswap bench: {exc}", file=sys.stderr)
        return 1
    print(json_reporter.render(result.as_dict()) if args.json else reporter.peers(result))
    if args.plot is not None:
        from ..reporters import plot_peers

        plot_peers.peers(result, args.plot)
    return 0


# ---- values of arguments


def _argument(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            return parse(text)
        except (TypeError, ValueError) as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None

    return checked


def _names(known: Sequence[str]) -> Callable[[str], Any]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r}; accepted: {', '.join(known)}, with commas between")
        return names

    return _argument(parse)


def _whole(text: str, most: int, least: int = 1) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{text!r}; accepted: an integer from {least} to {most}")
    return number


@_argument
def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= 60:
        raise ValueError(f"{text!r}; accepted: a number from 0.01 to 60")
    return number


@_argument
def _directory(text: str) -> str:
    from os import W_OK, access

    if not Path(text).is_dir() or not access(text, W_OK):
        raise ValueError(f"{text!r} is not a directory that can be written to")
    return text


_size = _argument(lambda text: parse_size(text, "size", minimum=4 * MIB, multiple=MIB))
_rounds = _argument(lambda text: _whole(text, 1000))
_overs = _argument(lambda text: tuple(_whole(part, 1024, 2) for part in text.split(",")))
_blocks = _argument(lambda text: tuple(parse_block(part) for part in text.split(",")))
