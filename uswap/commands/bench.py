# SPDX-License-Identifier: MIT
"""``uswap bench``: what paging costs here, beside what the machine does without it."""

from __future__ import annotations

import argparse
import sys

from ..bench.common import DATA
from ..codecs import FILTERS
from ..errors import LimitError
from ..options import parse_segment
from ..paths import say
from ..reporters import json as json_reporter
from ..reporters.progress import ProgressLine
from . import arguments, bench_peers
from .base import Command

__all__ = ["BenchCommand"]

MIB = 1 << 20
PATTERNS = ("uniform", "zipf")  # bench.overwrite's, which need not be imported for --help


class BenchCommand(Command):
    """One subcommand a benchmark."""

    description = (
        "Measure what paging costs on this machine, beside what the machine does without it in the "
        "same run. Each figure is the median of several rounds, with the lowest and the highest."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the benchmarks and their arguments."""
        benches = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
        beside = benches.add_parser(
            "peers",
            help="uswap beside zram, zswap, np.memmap, a naive pager and memory without a limit",
            description=(
                "The same workloads on the same data with the same limit: on uswap's memory, on the kernel's "
                "with swap to zram or to a file with zswap, on np.memmap, on a naive userfaultfd pager, and "
                "on memory without a limit. They take turns. The kernel's are set up and undone here, "
                "which needs root; without it they are left out."
            ),
        )
        beside.set_defaults(measure=bench_peers.run)
        bench_peers.add_arguments(beside)
        latency = benches.add_parser(
            "latency",
            help="how long a thread stands at a fault, by the kind of the fault",
            description=(
                "How long a thread stands at a fault, as the application sees it, by the kind of the "
                "fault; beside the kernel's own first touch, userfaultfd with a handler that has "
                "nothing to do, and the codec alone."
            ),
        )
        latency.set_defaults(measure=self._latency)
        latency.add_argument(
            "--block",
            type=arguments.block,
            default=4096,
            metavar="SIZE",
            help="block size (default: 4KiB)",
        )
        _common(latency, size=32 * MIB, least=4 * MIB, most="region that is touched", rounds=5)
        latency.add_argument(
            "--data",
            choices=[*DATA],
            default="int64",
            help="int64: integers below 1000 (default); walk: a random walk of float64; float32: normally "
            "distributed; text; random, which does not compress",
        )
        _filter(latency)
        latency.add_argument(
            "--threads",
            type=arguments.several(arguments.count(64, least=1)),
            default=[1, 2],
            metavar="N,...",
            help="how many threads touch at once; several numbers are measured in turn (default: 1,2)",
        )
        arguments.plot(latency, "the distributions")
        throughput = benches.add_parser(
            "throughput",
            help="sequential reads of a region in the pool or a swap file, in MB/s",
            description=(
                "Sequential reads of a region in the pool, or with --dir in a swap file: wholly evicted "
                "before, and with a limit of a quarter of it; beside plain memory and the codec alone."
            ),
        )
        throughput.set_defaults(measure=self._throughput)
        throughput.add_argument(
            "--block",
            type=arguments.blocks,
            default=None,
            metavar="SIZE,...",
            help="block sizes (default: 4KiB,16KiB,64KiB and uswap's own default)",
        )
        _common(throughput, size=256 * MIB, least=16 * MIB, most="region", rounds=5)
        throughput.add_argument(
            "--data",
            choices=["halved", *DATA],
            default="halved",
            help="halved: integers that the codec halves (default); int64: below 1000; walk; float32; text; random",
        )
        throughput.add_argument(
            "--write", action="store_true", help="measure read-modify-write as well"
        )
        _filter(throughput)
        throughput.add_argument(
            "--dir",
            type=arguments.directory,
            default=None,
            metavar="DIR",
            help="make a swap file there, and read out of that (default: out of the pool)",
        )
        throughput.add_argument(
            "--readahead", type=arguments.size(0), metavar="SIZE", help="as the option of uswap"
        )
        throughput.add_argument(
            "--workers", type=arguments.count(256), metavar="N", help="as the option of uswap"
        )
        tiers = benches.add_parser(
            "tiers",
            help="the swap file: what a fault costs that reads from it, and write-out",
            description=(
                "What a fault costs whose block is in the swap file, beside a plain O_DIRECT read of "
                "as many bytes, on an idle disk and during write-out; and what write-out costs, beside a "
                "plain sequential write, and beside the same with a decompression in between."
            ),
        )
        tiers.set_defaults(measure=self._tiers)
        tiers.add_argument(
            "--dir",
            type=arguments.directory,
            default="/var/tmp",
            metavar="DIR",
            help="where the files are made; they have no names (default: /var/tmp)",
        )
        tiers.add_argument(
            "--block",
            type=arguments.block,
            default=16384,
            metavar="SIZE",
            help="block size (default: 16KiB)",
        )
        _common(tiers, size=256 * MIB, least=16 * MIB, most="region", rounds=5)
        tiers.add_argument(
            "--seconds",
            type=arguments.number(0.1, 3600),
            default=2.0,
            metavar="S",
            help="of faults during write-out, a round, at most (default: 2)",
        )
        tiers.add_argument(
            "--sweep",
            action="store_true",
            help="measure segment sizes, layouts and I/O engines as well",
        )
        arguments.plot(tiers, "all of it")
        tiers.add_argument(
            "--data",
            choices=["halved", *DATA],
            default="halved",
            help="halved: integers that the codec halves (default); int64: below 1000; walk; float32; text; random",
        )

        overwrite = benches.add_parser(
            "overwrite",
            help="write amplification of a swap file that is overwritten at random",
            description=(
                "A region is filled until a part of the swap file is live, then its blocks are "
                "overwritten with fresh data at random. What is written to the file for each byte "
                "that came from the pool, beside what theory gives; how full the file gets, what "
                "cleaning it costs, and how the speed holds. Every byte is compared at the end."
            ),
        )
        overwrite.set_defaults(measure=self._overwrite)
        overwrite.add_argument(
            "--live",
            type=arguments.several(arguments.number(0.05, 0.98)),
            default=[0.5, 0.7, 0.85, 0.9],
            metavar="PART,...",
            help="parts of the file that are live (default: 0.5,0.7,0.85,0.9)",
        )
        overwrite.add_argument(
            "--pattern",
            choices=[*PATTERNS, "both"],
            default="both",
            help="which blocks: each as often, or by Zipf's law (default: both)",
        )
        overwrite.add_argument(
            "--swap",
            type=arguments.size(16 * MIB, multiple=4 * MIB),
            default=256 * MIB,
            metavar="SIZE",
            help="bytes of the swap file (default: 256MiB)",
        )
        overwrite.add_argument(
            "--segment",
            type=arguments.argument(parse_segment),
            default=MIB,
            metavar="SIZE",
            help="(default: 1MiB)",
        )
        overwrite.add_argument(
            "--block",
            type=arguments.block,
            default=16 << 10,
            metavar="SIZE",
            help="(default: 16KiB)",
        )
        overwrite.add_argument(
            "--turns",
            type=arguments.number(0.5, 1000),
            default=4.0,
            metavar="N",
            help="how often as many bytes as the file has are overwritten; the first half is not "
            "measured (default: 4)",
        )
        overwrite.add_argument(
            "--dir",
            "--directory",  # its first name
            dest="directory",
            type=arguments.directory,
            default="/var/tmp",
            metavar="DIR",
            help="where the swap file is made (default: /var/tmp)",
        )
        overwrite.add_argument("--json", action="store_true", help="print JSON")

    def run(self, args: argparse.Namespace) -> int:
        """Run the benchmark that was asked for."""
        if getattr(args, "plot", None) is not None:
            from ..reporters import plot

            try:
                plot.check(args.plot)  # before minutes are spent on measuring
            except (ImportError, ValueError) as exc:
                print(f"uswap bench: {exc}", file=sys.stderr)
                return 2
        try:
            status: int = args.measure(args)
        except OSError as exc:
            print(f"uswap bench: {say(exc)}", file=sys.stderr)
            return 2
        return status

    def _latency(self, args: argparse.Namespace) -> int:
        from ..bench import latency
        from ..reporters import bench as reporter
        from ..reporters import plot

        config = latency.Latency(
            block=args.block,
            size=args.size,
            rounds=args.rounds,
            data=args.data,
            threads=args.threads,
            codec=args.codec,
            filter=args.filter,
        )
        with ProgressLine() as progress:
            result = latency.measure(config, progress)
        if args.json:
            print(json_reporter.render(result.as_dict()))
        else:
            print(reporter.latency(result))
        if args.plot is not None:
            plot.latency(result, args.plot)
        return 0

    def _throughput(self, args: argparse.Namespace) -> int:
        from .. import options
        from ..bench import throughput
        from ..reporters import bench as reporter

        blocks = args.block
        if blocks is None:
            blocks = sorted({4096, 16384, 65536, options.resolve().block})
        config = throughput.Throughput(
            blocks=blocks,
            size=args.size,
            rounds=args.rounds,
            data=args.data,
            codec=args.codec,
            filter=args.filter,
            write=args.write,
            readahead=args.readahead,
            workers=args.workers,
            directory=args.dir,
        )
        with ProgressLine() as progress:
            result = throughput.measure(config, progress)
        if args.json:
            print(json_reporter.render(result.as_dict()))
        else:
            print(reporter.throughput(result))
        return 0

    def _tiers(self, args: argparse.Namespace) -> int:
        from ..bench import tiers
        from ..reporters import plot_tiers
        from ..reporters import tiers as reporter

        config = tiers.Tiers(
            directory=args.dir,
            block=args.block,
            size=args.size,
            rounds=args.rounds,
            seconds=args.seconds,
            data=args.data,
            codec=args.codec,
            sweep=args.sweep,
        )
        with ProgressLine() as progress:
            result = tiers.measure(config, progress)
        if args.json:
            print(json_reporter.render(result.as_dict()))
        else:
            print(reporter.tiers(result))
        if args.plot is not None:
            plot_tiers.tiers(result, args.plot)
        return 0

    def _overwrite(self, args: argparse.Namespace) -> int:
        from ..bench import overwrite
        from ..reporters import bench as reporter

        config = overwrite.Overwrite(
            parts=args.live,
            patterns=overwrite.PATTERNS if args.pattern == "both" else (args.pattern,),
            swap=args.swap,
            segment=args.segment,
            block=args.block,
            turns=args.turns,
            directory=args.directory,
        )
        try:
            with ProgressLine() as progress:
                result = overwrite.measure(config, progress)
        except LimitError as exc:
            print(f"uswap bench: {exc}", file=sys.stderr)
            return 2
        if args.json:
            print(json_reporter.render(result.as_dict()))
        else:
            print(reporter.overwrite(result))
        return 0


def _common(
    parser: argparse.ArgumentParser, *, size: int, least: int, most: str, rounds: int
) -> None:
    parser.add_argument(
        "--size",
        type=arguments.size(least, multiple=4 * MIB),
        default=size,
        metavar="SIZE",
        help=f"bytes of the {most} (default: {size // MIB}MiB)",
    )
    parser.add_argument(
        "--rounds",
        type=arguments.count(1000, least=1),
        default=rounds,
        metavar="N",
        help=f"how often each is measured, in turn (default: {rounds})",
    )
    parser.add_argument(
        "--codec", choices=["lz4", "zstd", "none"], default="lz4", help="(default: lz4)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--filter",
        choices=[*FILTERS],
        default="none",
        help="shuffle numbers, as a pager does by itself (default: none); which one is what the codec "
        "alone is measured with",
    )
