# SPDX-License-Identifier: MIT
"""``uswap bench peers``: arguments, and what is done with the result."""

from __future__ import annotations

import argparse
import sys

from ..bench import common
from ..reporters import json as json_reporter
from ..reporters.progress import ProgressLine
from ..sizes import format_size
from . import arguments

__all__ = ["add_arguments", "run"]

MIB = 1 << 20
DATA = tuple(common.DATA)
# bench.peers and bench.subject have the same, and need not be imported for --help.
PEERS = ("uswap", "zram", "naive", "zswap", "memmap", "plain")
WORKS = (
    *("read", "rmw", "strided", "random", "zipf", "tenth", "write"),
    *("random2", "write2", "loaded", "matmul", "sort"),
)
FAULTS = ("message", "inline", "auto")
NUMPY = ("gather", "scatter", "columns", "transpose", "argsort", "exchange")
LIBRARIES = (
    *("sklearn-split", "sklearn-forest", "pandas-sort", "polars-sort", "arrow-sort"),
    *("numba-histogram", "numba-columns"),
)
PROGRAMS = (*NUMPY, *LIBRARIES)
DEFAULT = "default"  # in place of a value: as if the option were not given


def _block(text: str) -> int:
    """A block's bytes; 0 stands for the default."""
    return 0 if text == DEFAULT else int(arguments.block(text))


@arguments.argument
def _faults(text: str) -> tuple[str, ...]:
    """Values of the option faults; "" stands for the default."""
    found: tuple[str, ...] = arguments.names((*FAULTS, DEFAULT))(text)
    return tuple("" if one == DEFAULT else one for one in found)


@arguments.argument
def _works(text: str) -> tuple[str, ...]:
    """Names of workloads; programs stands for all of its own."""
    found = arguments.names((*WORKS, *PROGRAMS, "programs"))(text)
    return tuple(
        dict.fromkeys(
            one for name in found for one in (PROGRAMS if name == "programs" else (name,))
        )
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--peers",
        type=arguments.names(PEERS),
        default=PEERS,
        metavar="PEER,...",
        help=f"what is compared (default: all): {', '.join(PEERS)}",
    )
    parser.add_argument(
        "--work",
        type=_works,
        default=WORKS,
        metavar="WORK,...",
        help=f"workloads (default: all of these): {', '.join(WORKS)}; what NumPy programs do: "
        f"{', '.join(NUMPY)}; of other libraries, of which those are measured that are installed "
        f"(pip install 'uswap[bench]'): {', '.join(LIBRARIES)}; programs: all that programs do",
    )
    parser.add_argument(
        "--data",
        type=arguments.names(DATA),
        default=("int64",),
        metavar="DATA,...",
        help="int64: integers below 1000 (default); walk: a random walk of float64; float32: normally "
        "distributed; text; random, which does not compress",
    )
    parser.add_argument(
        "--over",
        type=arguments.several(arguments.count(1024, least=2)),
        default=(4,),
        metavar="N,...",
        help="how many times the limit the data are (default: 4)",
    )
    parser.add_argument(
        "--size",
        type=arguments.size(4 * MIB, multiple=MIB),
        default=256 * MIB,
        metavar="SIZE",
        help="bytes of data where what is out stays in RAM (default: 256MiB)",
    )
    parser.add_argument(
        "--disk-size",
        type=arguments.size(4 * MIB, multiple=MIB),
        default=1024 * MIB,
        metavar="SIZE",
        help="bytes of data where what is out goes to a disk (default: 1GiB)",
    )
    parser.add_argument(
        "--rounds",
        type=arguments.count(1000, least=1),
        default=5,
        metavar="N",
        help="how often each peer is measured, in turn (default: 5)",
    )
    parser.add_argument(
        "--seconds",
        type=arguments.number(0.01, 60),
        default=0.4,
        metavar="S",
        help="of each workload and round; a sequential pass may take 6 times as long (default: 0.4)",
    )
    parser.add_argument(
        "--dir",
        type=arguments.directory,
        default="/var/tmp",
        metavar="DIR",
        help="where swap files and the mapped file are made (default: /var/tmp)",
    )
    parser.add_argument(
        "--block",
        type=arguments.several(_block),
        default=(),
        metavar="SIZE,...",
        help="block sizes of uswap, each a column of its own, as `default` is (default: uswap's default)",
    )
    parser.add_argument(
        "--faults",
        type=_faults,
        default=(),
        metavar="HOW,...",
        help=f"uswap's option `faults`, each value a column of its own: {', '.join(FAULTS)}, or `default` "
        "(default: uswap's default)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments.plot(parser, "all of it")


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
        faults=args.faults,
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
