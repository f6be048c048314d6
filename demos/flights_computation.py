# SPDX-License-Identifier: MIT
"""The computation: ordinary NumPy on arrays that somebody else makes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flights_data import CODED, COLUMNS, DELAY_GAP, DELAY_OFFSET, DERIVED, SORTED, Array

CHUNK = 1 << 16  # rows; temporaries have so many

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
