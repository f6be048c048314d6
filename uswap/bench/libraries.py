# SPDX-License-Identifier: MIT
"""What programs of libraries on top of NumPy do to memory, for `uswap bench peers --work programs`.

The whole memory is input, and of the kind that is compared. What a library allocates (results, whole copies,
indices) is ordinary memory. It is not to be paged with any peer, so each program is run before, on ordinary
memory, until the allocators have all that they need and give nothing back: a process takes that along when it moves
into its cgroup, whose limit is then for the data alone. These runs also compile, and find the results that
are expected.

A library uses one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import mmap
import os
import resource
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from .common import SEED, WrongBytes
from .programs import LIBRARIES, ROW, WORD, Found, pieces

__all__ = ["Libraries"]

#: Read by the libraries when they are imported.
SETTINGS = {
    "POLARS_MAX_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    # Arrow by malloc, and the jemalloc of Polars: nothing goes back to the kernel.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1",
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt()

TEST = 0.25  # of the rows are for the test
# A forest. To try a feature at a split it reads one number of each row in the order of the feature tried before.
TREES, DEPTH, FEATURES = 2, 2, 2
BOOTSTRAP = 0.25  # of the rows are drawn for a tree
COLUMNS = 32  # of the frame that Polars sorts
BINS = 256
TAKEN = 512  # rows in a piece
RUNS = 6  # at most, before
FEW = 64  # minor faults of a run that has allocated nothing


class Libraries:
    """The programs, ready to be run on memory.

    Args:
        numpy: the module.
        names: those of programs.LIBRARIES that will be run.
        size: bytes of the memory.
        chunk: the data, which repeat.
        kind: of the numbers that the data are, a name of a type of NumPy.
        number: of the round; it chooses what is random.
    """

    def __init__(
        self, numpy: Any, names: Sequence[str], size: int, chunk: bytes, kind: str, number: int
    ) -> None:
        os.environ.update(SETTINGS)
        _keep_memory()
        self.np, self.seed = numpy, SEED + number
        modules = dict.fromkeys(module for name in names for module in LIBRARIES[name])
        self.modules = {module: importlib.import_module(module) for module in modules}
        gc.collect()
        gc.freeze()  # what they consist of is not looked at in each collection
        self.rows = size // ROW
        self.chunk = numpy.frombuffer(chunk, numpy.uint64)
        numbers = self.chunk.view(kind).astype(numpy.float32)
        self.floats: bytes = numbers.tobytes()
        self.words = chunk
        random = numpy.random.default_rng(self.seed)
        self.order = random.permutation(self.rows)
        self.labels = random.integers(0, 2, self.rows)
        self.compiled: dict[str, Any] = {}
        if "numba" in self.modules:
            for function in (_count_rows, _sum_columns):
                self.compiled[function.__name__] = self.modules["numba"].njit(function)
        self.expected: dict[str, int] = {}
        self._run_before(names, size)

    def data_of(self, name: str) -> bytes:
        """What the memory has to hold, repeated: the data, or for a forest the same numbers as float32."""
        return self.floats if name == "sklearn-forest" else self.words

    def run(self, name: str, view: memoryview, seconds: float) -> Found:
        """Run one on memory that holds what it has to; the loops piece by piece, as many as there is time for.

        Returns:
            How many rows or columns were done, how many bytes that is, and nanoseconds.

        Raises:
            WrongBytes: the result is not that of ordinary memory.
        """
        found, result = self._call(name, view, seconds)
        if result != self.expected[name]:
            raise WrongBytes(f"{name} found another result than in ordinary memory")
        return found

    def _call(self, name: str, view: memoryview, seconds: float) -> tuple[Found, int]:
        """What run() returns, and a hash of the result: 0 where it was checked already."""
        words = self.np.frombuffer(view[: self.rows * ROW], self.np.uint64)
        rows = words.reshape(self.rows, ROW // WORD)
        gc.collect()
        try:
            call: Callable[..., Any] = getattr(self, f"_{name.replace('-', '_')}")
            if name.startswith("numba"):
                return call(rows, seconds), 0
            start = time.perf_counter_ns()
            result = call(rows)
            ns = time.perf_counter_ns() - start
            return (self.rows, self.rows * ROW, ns), self._hash(result)
        finally:
            del words, rows
            gc.collect()  # nothing of the memory is kept, which could not be closed otherwise

    def _run_before(self, names: Sequence[str], size: int) -> None:
        """Run all on ordinary memory, again and again until nothing is allocated any more."""
        with mmap.mmap(-1, size) as memory, memoryview(memory) as view:
            holds: dict[str, bytes] = {}
            for _ in range(RUNS):
                faults = 0
                for name in names:
                    data = self.data_of(name)
                    if holds.get("data") is not data:
                        holds["data"] = data
                        for at in range(0, size, len(data)):
                            part = min(len(data), size - at)
                            view[at : at + part] = data[:part]
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                    _, self.expected[name] = self._call(name, view, 3600)
                    faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
                gc.freeze()  # what was compiled
                if faults < FEW:
                    break

    def _hash(self, arrays: Sequence[Any]) -> int:
        found = 0
        for one in arrays:
            found = zlib.crc32(self.np.ascontiguousarray(one), found)
        return found

    # ---- one call of a library each: the rows of the memory, to arrays of the result

    def _sklearn_split(self, rows: Any) -> Sequence[Any]:
        """Rows at random for training, the others for the test: two gathers of rows."""
        split = self.modules["sklearn.model_selection"].train_test_split
        found: Sequence[Any] = split(rows, test_size=TEST, random_state=self.seed)
        return found

    def _sklearn_forest(self, rows: Any) -> Sequence[Any]:
        """A forest of small trees, fit to labels that have nothing to do with the data, so that it splits."""
        forest = self.modules["sklearn.ensemble"].RandomForestClassifier(
            n_estimators=TREES,
            max_depth=DEPTH,
            max_features=FEATURES,
            max_samples=BOOTSTRAP,
            n_jobs=1,
            random_state=self.seed,
        )
        forest.fit(rows.view(self.np.float32), self.labels)
        trees = [one.tree_ for one in forest.estimators_]
        return [part for one in trees for part in (one.feature, one.threshold, one.n_node_samples)]

    def _pandas_sort(self, rows: Any) -> Sequence[Any]:
        """Rows in the order of the first column."""
        return [self._pandas_frame(rows).sort_values(by=0, kind="stable").to_numpy(copy=False)]

    def _polars_sort(self, rows: Any) -> Sequence[Any]:
        """The same, of columns that lie one after the other."""
        frame = self._polars_frame(rows).sort("0", maintain_order=True)
        return [one.to_numpy() for one in frame.get_columns()]

    def _arrow_sort(self, rows: Any) -> Sequence[Any]:
        """Numbers of the rows in the order of their bytes."""
        array = self._arrow_array(self.modules["pyarrow"].binary(ROW), rows)
        return [self.modules["pyarrow.compute"].sort_indices(array).to_numpy()]

    # ---- the memory as a library's input, without a copy

    def _pandas_frame(self, rows: Any) -> Any:
        return self.modules["pandas"].DataFrame(rows.view(self.np.int64), copy=False)

    def _polars_frame(self, rows: Any) -> Any:
        polars, int64 = self.modules["polars"], self.modules["pyarrow"].int64()
        length = rows.size // COLUMNS
        columns = rows.reshape(-1)[: length * COLUMNS].reshape(COLUMNS, length)
        return polars.DataFrame(
            {
                str(number): polars.from_arrow(self._arrow_array(int64, column))
                for number, column in enumerate(columns)
            }
        )

    def _arrow_array(self, kind: Any, values: Any) -> Any:
        arrow = self.modules["pyarrow"]
        return arrow.Array.from_buffers(kind, len(values), [None, arrow.py_buffer(values.data)])

    # ---- compiled loops

    def _numba_histogram(self, rows: Any, seconds: float) -> Found:
        """Words of rows in a random order, counted by their lowest bits."""
        rows = rows.view(self.np.int64)
        counts = self.np.zeros(BINS, self.np.int64)
        loop = self.compiled["_count_rows"]
        loop(rows, self.order[:0], counts)  # which compiles it

        def step(first: int, last: int) -> None:
            loop(rows, self.order[first:last], counts)

        done, ns = pieces(self.rows, TAKEN, seconds, step)
        truth = (self.chunk % BINS).astype(self.np.int64).reshape(-1, ROW // WORD)
        times = self.np.bincount(self.order[:done] % len(truth), minlength=len(truth))
        want = self.np.bincount(truth.ravel(), self.np.repeat(times, ROW // WORD), minlength=BINS)
        if not bool((counts == want).all()):
            raise WrongBytes("a histogram is not that of what was written")
        return done, done * ROW, ns

    def _numba_columns(self, rows: Any, seconds: float) -> Found:
        """Sums of columns, one by one from the first row to the last."""
        sums = self.np.zeros(ROW // WORD, self.np.uint64)
        loop = self.compiled["_sum_columns"]
        loop(rows, 0, 0, sums)

        def step(first: int, last: int) -> None:
            loop(rows, first, last, sums)

        done, ns = pieces(ROW // WORD, 1, seconds, step)
        words = self.np.arange(self.rows) * (ROW // WORD)
        for column in range(done):
            if sums[column] != self.chunk[(words + column) % len(self.chunk)].sum():
                raise WrongBytes("a column has another sum than what was written")
        return done, done * self.rows * WORD, ns


def _keep_memory() -> None:
    """Have malloc() take all from the heap, and never give any of it back."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # not glibc
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def _count_rows(rows: Any, order: Any, counts: Any) -> None:
    for row in order:
        for column in range(rows.shape[1]):
            counts[rows[row, column] & (BINS - 1)] += 1


def _sum_columns(rows: Any, first: int, last: int, sums: Any) -> None:
    for column in range(first, last):
        for row in range(rows.shape[0]):
            sums[column] += rows[row, column]
