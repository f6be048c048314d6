# SPDX-License-Identifier: MIT
"""What ordinary NumPy programs do to memory, for `uswap bench peers --work programs`.

One half of the memory is read, the other written; both are of the kind that is compared. What a piece of a
program needs beside them (indices, a row that is exchanged) is small, and ordinary memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from .common import SEED, WrongBytes

__all__ = ["LIBRARIES", "NUMPY", "PROGRAMS", "ROW", "WORD", "Found", "Programs", "pieces"]

#: Those of NumPy by name, in the order in which they are run.
NUMPY = ("gather", "scatter", "columns", "transpose", "argsort", "exchange")
#: Those of other libraries (see libraries.py), which are run after them, and the modules that each imports.
LIBRARIES = {
    "sklearn-split": ("sklearn.model_selection",),
    "sklearn-forest": ("sklearn.ensemble",),
    "pandas-sort": ("pandas",),
    "polars-sort": ("polars", "pyarrow"),
    "arrow-sort": ("pyarrow", "pyarrow.compute"),
    "numba-histogram": ("numba",),
    "numba-columns": ("numba",),
}
PROGRAMS = (*NUMPY, *LIBRARIES)

ROW = 512  # bytes
WORD = 8
TAKEN = 8192  # rows in a piece
EXCHANGED = 2048  # pairs of rows in a piece
LOOKED = 256  # rows or words that are compared at the end

Found = tuple[int, int, int]  # pieces' count, bytes, nanoseconds


def pieces(
    count: int, each: int, seconds: float, step: Callable[[int, int], None]
) -> tuple[int, int]:
    """Call step(first, last) for pieces of at most `each`; return how many were done, and nanoseconds."""
    done, ns, start = 0, 0, time.perf_counter_ns()
    while done < count and ns < seconds * 1e9:
        last = min(count, done + each)
        step(done, last)
        done = last
        ns = time.perf_counter_ns() - start
    return done, ns


class Programs:
    """The two halves, and what can be done with them.

    Args:
        numpy: the module.
        size: bytes of the memory.
        chunk: the data.
        number: of the round; it chooses the order of rows.
    """

    def __init__(self, numpy: Any, size: int, chunk: bytes, number: int) -> None:
        self.np = numpy
        self.half = size // 2 // ROW * ROW
        self.chunk = numpy.frombuffer(chunk, numpy.uint64)
        self.rows = self.half // ROW
        _, self.ranks = numpy.unique(self.chunk.view(f"S{ROW}"), return_inverse=True)
        self.order = numpy.random.default_rng(SEED + number).permutation(self.rows)
        self.side = math.isqrt(self.half // WORD)
        self._some(
            self.rows
        )  # numpy.unique imports numpy.ma, which is to be before the limit is there
        self.source: Any = None
        self.target: Any = None

    def attach(self, view: memoryview) -> None:
        """Say where the memory is; its first half holds the data, repeated."""
        words = self.np.frombuffer(view[: 2 * self.half], self.np.uint64)
        self.source, self.target = words[: self.half // WORD], words[self.half // WORD :]

    def detach(self) -> None:
        """Keep nothing of the memory, which could not be closed otherwise."""
        self.source = self.target = None

    def run(self, name: str, seconds: float) -> Found:
        """Run one, piece by piece, as many as there is time for.

        Returns:
            How many pieces (rows, columns, pairs) were done, how many bytes that is, and nanoseconds.

        Raises:
            WrongBytes: what came out is not what went in.
        """
        run: Callable[[float], Found] = getattr(self, f"_{name}")
        return run(seconds)

    def _truth(self, words: Any) -> Any:
        """What the source holds at these words."""
        return self.chunk[words % len(self.chunk)]

    def _compare(self, found: Any, words: Any) -> None:
        if not bool((found == self._truth(words)).all()):
            raise WrongBytes("a program found other words than were written")

    def _some(self, count: int) -> Any:
        return self.np.unique(
            self.np.linspace(0, count - 1, min(count, LOOKED)).astype(self.np.int64)
        )

    def _row_words(self, rows: Any) -> Any:
        width = ROW // WORD
        return rows[:, None] * width + self.np.arange(width)

    def _as_rows(self, half: Any) -> Any:
        return half.reshape(self.rows, ROW // WORD)

    def _gather(self, seconds: float) -> Found:
        """Rows in a random order, one after the other into the target: a[indices]."""
        source, target = self._as_rows(self.source), self._as_rows(self.target)

        def step(first: int, last: int) -> None:
            self.np.take(
                source, self.order[first:last], axis=0, out=target[first:last], mode="clip"
            )

        done, ns = pieces(self.rows, TAKEN, seconds, step)
        some = self._some(done)
        self._compare(target[some], self._row_words(self.order[some]))
        return done, done * ROW, ns

    def _scatter(self, seconds: float) -> Found:
        """Rows in order to random places: b[indices] = a."""
        source, target = self._as_rows(self.source), self._as_rows(self.target)

        def step(first: int, last: int) -> None:
            target[self.order[first:last]] = source[first:last]

        done, ns = pieces(self.rows, TAKEN, seconds, step)
        some = self._some(done)
        self._compare(target[self.order[some]], self._row_words(some))
        return done, done * ROW, ns

    def _columns(self, seconds: float) -> Found:
        """Sums of columns, one by one: a[:, j].sum()."""
        side = self.side
        square = self.source[: side * side].reshape(side, side)
        sums = self.np.zeros(side, self.np.uint64)

        def step(first: int, _last: int) -> None:
            sums[first] = square[:, first].sum()

        done, ns = pieces(side, 1, seconds, step)
        for column in self._some(done)[:4]:
            words = self.np.arange(side) * side + column
            if int(sums[column]) != int(self._truth(words).sum()):
                raise WrongBytes("a column has another sum than what was written")
        return done, done * side * WORD, ns

    def _transpose(self, seconds: float) -> Found:
        """A square, transposed into the target as NumPy does it, row of the target by row."""
        side = self.side
        square = self.source[: side * side].reshape(side, side)
        turned = self.target[: side * side].reshape(side, side)

        def step(first: int, _last: int) -> None:
            turned[first] = square[:, first]

        done, ns = pieces(side, 1, seconds, step)
        some = self._some(done)
        self._compare(turned[some, 0], some)
        self._compare(turned[some, side - 1], (side - 1) * side + some)
        return done, done * side * WORD, ns

    def _argsort(self, _seconds: float) -> Found:
        """Numbers of the rows in the order of their bytes, equal ones in theirs; whole, however long it takes."""
        rows = self.source[: self.rows * (ROW // WORD)].view(f"S{ROW}")
        start = time.perf_counter_ns()
        order = self.np.argsort(rows, kind="stable")
        ns = time.perf_counter_ns() - start
        ranks = self.ranks[self.np.arange(self.rows) % len(self.ranks)]
        if not bool((order == self.np.argsort(ranks, kind="stable")).all()):
            raise WrongBytes("argsort found another order than that of what was written")
        return self.rows, self.rows * ROW, ns

    def _exchange(self, seconds: float) -> Found:
        """Random rows change places in pairs, as a shuffle does. The last of them: the source is not what it was."""
        rows, pairs = self._as_rows(self.source), self.rows // 2
        one, other = self.order[:pairs], self.order[pairs : 2 * pairs]

        def step(first: int, last: int) -> None:
            a, b = one[first:last], other[first:last]
            kept = rows[a]
            rows[a] = rows[b]
            rows[b] = kept

        done, ns = pieces(pairs, EXCHANGED, seconds, step)
        some = self._some(done)
        self._compare(rows[one[some]], self._row_words(other[some]))
        self._compare(rows[other[some]], self._row_words(one[some]))
        return done, 2 * done * ROW, ns
