# SPDX-License-Identifier: MIT
"""The process in which `uswap bench peers` runs its workloads, on memory of one kind.

It reads a specification (JSON) from stdin and writes what it measured to stdout, a line of JSON for each
piece, so that what it has measured is known even if the kernel ends it. All that it needs is
imported and allocated first. Only then it moves itself into the cgroup with the limit, so that what
counts there is the data: a page belongs to the cgroup that its process was in at the first touch.

Each workload checks what it reads against sums that are kept outside of the memory. A page that holds
anything else ends the process with an error; no such figure is ever reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import gc
import itertools
import json
import math
import mmap
import os
import random
import resource
import signal
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from .. import codecs
from .._core import ffi, lib
from ..client import Pager
from ..trace.patterns import zipf
from .common import SEED, WrongBytes, address_of, load_codec
from .libraries import Libraries
from .programs import LIBRARIES, NUMPY, PROGRAMS, Programs

__all__ = ["BY_NUMPY", "FITS", "WORKS", "WrongBytes", "main"]

#: Workloads on memory, in the order in which they are run; sorting is last, as it changes the data.
WORKS = (
    "fill",
    "read",
    "rmw",
    "strided",
    "matmul",
    "random",
    "zipf",
    "tenth",
    "write",
    "random2",
    "write2",
    "loaded",
    *PROGRAMS,
    "sort",
)
#: Those that need numpy.
BY_NUMPY = ("matmul", *PROGRAMS, "sort")
#: What is measured where the data fit.
FITS = ("touch", "read", "random")

PAGE = 4096
LIST = 1 << 18  # random pages in a list
ROOM = 1 << 20  # accesses that are timed one by one
WARM = 0.25  # of a workload's time goes before it, unmeasured
TURNED = 2  # accesses for each page that may be resident: then all that was there before has left
WHOLE = 6  # times its time is what a sequential pass may take to be a whole one, or settling
SETTLED = 4  # accesses for each page: then what is resident is what the policy wants to be
STRIDE = 16  # pages
HOT = 0.9  # of the accesses go to a tenth of the pages
PANEL = 256  # rows and columns of a panel
SORTED = 1.25  # times the limit is what is sorted, so that it does not fit
FOR_EVER = (1 << 64) - 1
ELEMENTS = 1 << 20  # that are looked at as one
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}

#: numpy's types of the data that can be multiplied.
NUMBERS = {"int64": "int64", "walk": "float64", "float32": "float32"}


class Memory(NamedTuple):
    """Memory to work on: where it lies, a writable buffer of it, and what is known of it now."""

    address: int
    view: memoryview
    density: Callable[[], float | None]
    """Bytes of data that are out of it, by the bytes of RAM they take; None where that has no meaning."""
    out: Callable[[], float | None]
    """The part that is on a disk of what is out; None where there is none, or it is not known."""
    about: Callable[[], dict[str, Any]]


# ---- kinds of memory


def _none() -> None:
    """What is not known, or has no meaning."""


def huge_memory(size: int) -> mmap.mmap:
    """Fresh anonymous memory, with huge pages as NumPy asks for them for its large arrays."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


@contextlib.contextmanager
def anonymous(spec: dict[str, Any]) -> Iterator[Memory]:
    """Memory of the kernel's."""
    memory = huge_memory(spec["size"])

    def density() -> float | None:
        if spec.get("statistics"):  # of zram
            with open(spec["statistics"], encoding="ascii") as file:
                raw, _, used = (int(field) for field in file.read().split()[:3])
            return raw / used if used else None
        if spec.get("zswap"):
            from .kernel import Zswap

            raw, used = Zswap.held()
            return raw / used if used else None
        return None

    def out() -> float | None:
        if not spec.get("zswap"):
            return None
        from .kernel import Zswap

        swapped = _swapped()
        return 1 - min(1.0, Zswap.held()[0] / swapped) if swapped else None

    with memory, memoryview(memory) as view:
        yield Memory(address_of(memory), view, density, out, lambda: {"swapped": _swapped()})


def _swapped() -> int:
    """Bytes of this process that are in swap."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmSwap:"):
                return int(line.split()[1]) << 10
    return 0


@contextlib.contextmanager
def paged(spec: dict[str, Any]) -> Iterator[Memory]:
    """A region of uswap's."""
    with Pager(**spec["options"]) as pager:
        region = pager.region(spec["size"])

        def density() -> float | None:
            end = time.monotonic() + 10
            now, before = pager.stats(), None
            # The gauges are brought up to date one after the other.
            while (now.outbox or now.pool_allocated != before) and time.monotonic() < end:
                before = now.pool_allocated
                time.sleep(0.05)
                now = pager.stats()
            if not now.pool_allocated:
                return None
            return (now.pooled_raw + now.filled) / now.pool_allocated

        def out() -> float | None:
            now = pager.stats()
            whole = now.stored_raw + now.pooled_raw + now.filled
            return now.stored_raw / whole if whole and now.swap else None

        def about() -> dict[str, Any]:
            now = pager.stats()
            names = ("peak_resident", "pooled_raw", "pooled", "stored_raw", "reads", "throttled")
            return {
                **{name: getattr(now, name) for name in names},
                "faults": dict(now.faults),
                **pager.about(),
            }

        view = memoryview(region)
        yield Memory(region.address, view, density, out, about)
        view.release()
        del view, region  # given up: closing it would bring it all back in


@contextlib.contextmanager
def naive(spec: dict[str, Any]) -> Iterator[Memory]:
    """A naive pager's."""
    load_codec("lz4")
    made = ffi.new("us_naive_t **")
    _check(
        lib.us_naive_open(made, spec["size"], spec["limit"], codecs.CODECS["lz4"]), "naive pager"
    )
    stats = ffi.new("us_naive_stats_t *")

    def read() -> dict[str, Any]:
        _check(lib.us_naive_stats(made[0], stats), "naive pager")
        return {name: int(getattr(stats, name)) for name, _ in ffi.typeof(stats[0]).fields}

    def density() -> float | None:
        now = read()
        return now["kept_raw"] / now["kept"] if now["kept"] else None

    address = int(lib.us_naive_address(made[0]))
    buffer = ffi.buffer(ffi.cast("char *", address), spec["size"])
    with memoryview(buffer) as view:
        yield Memory(address, view, density, _none, read)
    lib.us_naive_close(made[0])


@contextlib.contextmanager
def mapped(spec: dict[str, Any]) -> Iterator[Memory]:
    """A file, mapped as np.memmap does (mode "r+"); it holds the data already."""
    with open(spec["file"], "r+b", buffering=0) as file:
        cached = lib.us_file_cached(file.fileno(), 0, spec["size"])
        memory = mmap.mmap(file.fileno(), spec["size"])
        with memory, memoryview(memory) as view:
            yield Memory(address_of(memory), view, _none, _none, lambda: {"cached": int(cached)})


MEMORY = {"anonymous": anonymous, "paged": paged, "naive": naive, "mapped": mapped}


# ---- pages in order


def _uniform(pages: Sequence[int], rng: random.Random) -> array[int]:
    return array("I", rng.choices(pages, k=LIST))


def _zipf(pages: int, rng: random.Random) -> array[int]:
    return array("I", itertools.islice(zipf(pages, rng), LIST))


def _tenth(pages: int, rng: random.Random) -> array[int]:
    """Nine accesses in ten go to a tenth of the pages, which lie scattered; the others to the rest."""
    order = list(range(pages))
    rng.shuffle(order)
    hot, rest = order[: max(1, pages // 10)], order[max(1, pages // 10) :]
    return array("I", (rng.choice(hot if rng.random() < HOT else rest) for _ in range(LIST)))


def _strided(pages: int) -> array[int]:
    return array(
        "I", itertools.chain.from_iterable(range(at, pages, STRIDE) for at in range(STRIDE))
    )


class Accesses:
    """Accesses by one thread: pages in order, and room for what they took."""

    def __init__(
        self, sums: Any, chunk: bytes, chunk_sums: Any, pages: array[int], *, timed: bool = True
    ) -> None:
        self._pages = array("I", pages)
        self.ns = array("I", bytes(4 * ROOM)) if timed else array("I")
        self.access = ffi.new(
            "us_access_t *",
            {
                "sums": sums,
                "page": ffi.from_buffer("uint32_t[]", self._pages),
                "pages": len(self._pages),
                "from": ffi.from_buffer(chunk),
                "from_sums": chunk_sums,
                "from_pages": len(chunk) // PAGE,
                "ns": ffi.from_buffer("uint32_t[]", self.ns) if timed else ffi.NULL,
                "ns_room": len(self.ns),
            },
        )
        self._kept = (sums, chunk, chunk_sums)  # the struct does not keep them

    def run(self, address: int, kind: int, *, count: int = FOR_EVER, seconds: float) -> None:
        """Access, going on in the list where it was left."""
        a = self.access
        a.addr, a.kind, a.count = address, kind, count
        a.until = lib.us_now_ns() + round(seconds * 1e9)
        _check(lib.us_access(a), "access")
        a.first = (a.first + a.done) % a.pages
        if a.wrong:
            raise WrongBytes(f"{a.wrong} of {a.done} pages did not hold what was written to them")

    @property
    def timed(self) -> int:
        """How many accesses of the last run were timed one by one."""
        return min(int(self.access.done), len(self.ns))


# ---- the workloads


class Subject:
    """One memory, all workloads.

    Args:
        spec: see :meth:`uswap.bench.peers.Case.spec`.
        chunk: the data; longer memory repeats them.
    """

    def __init__(self, spec: dict[str, Any], chunk: bytes) -> None:
        self.spec, self.chunk = spec, chunk
        self.seconds: float = spec["seconds"]
        self.size: int = spec["size"]
        self.limit: int = spec["limit"]
        self.pages = self.size // PAGE
        rng = random.Random(SEED + spec["round"])
        whole = len(chunk) // PAGE
        self.chunk_sums = ffi.new("uint64_t[]", whole)
        lib.us_page_sums(address_of(chunk), whole, self.chunk_sums)
        self.sums = ffi.new("uint64_t[]", self.pages)
        for at in range(0, self.pages, whole):
            part = min(whole, self.pages - at)
            ffi.memmove(self.sums + at, self.chunk_sums, 8 * part)
        ordered, half = range(self.pages), self.pages // 2

        def made(pages: array[int], *, timed: bool = True) -> Accesses:
            return Accesses(self.sums, chunk, self.chunk_sums, pages, timed=timed)

        self.lists = {
            "ordered": made(array("I", ordered), timed=False),
            "strided": made(_strided(self.pages), timed=False),
            "uniform": made(_uniform(ordered, rng)),
            "zipf": made(_zipf(self.pages, rng)),
            "first": made(_uniform(ordered[:half], rng)),
            "second": made(_uniform(ordered[half:], rng)),
            "tenth": made(_tenth(self.pages, rng)),
        }
        self.samples = array("I", bytes(4 * 2 * ROOM))
        self.numpy: Any = None
        self.programs: Programs | None = None
        self.libraries: Libraries | None = None
        self.holds: bytes | None = None  # what the memory was given for a library
        if set(BY_NUMPY) & set(spec["work"]):
            import numpy as np

            self.numpy = np
            self._prepare_panels()
            if set(NUMPY) & set(spec["work"]):
                self.programs = Programs(np, self.size, chunk, spec["round"])
            if names := [one for one in LIBRARIES if one in spec["work"]]:
                kind = NUMBERS.get(spec["data"], "uint8")
                self.libraries = Libraries(np, names, self.size, chunk, kind, spec["round"])

    def run(self, memory: Memory) -> None:
        """Run the workloads that were asked for."""
        self.memory = memory
        if not self.spec["filled"]:
            self._measure("fill", self._fill)
        _answer(density=memory.density(), out=memory.out())
        for work in WORKS[1:]:
            if work in NUMPY and work in self.spec["work"]:
                self._measure(work, functools.partial(self._program, work))
            elif work in LIBRARIES and work in self.spec["work"]:
                self._measure(work, functools.partial(self._library, work))
            elif work in self.spec["work"]:
                self._measure(work, getattr(self, f"_{work}"))
        if self.programs is not None:
            self.programs.detach()

    def _measure(self, work: str, run: Callable[[], dict[str, Any] | None]) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        found = run()
        if found is not None:
            found["major_faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before
            _answer(work={work: found})

    def _fill(self) -> dict[str, Any]:
        return self._put(self.chunk)

    def _put(self, data: bytes) -> dict[str, Any]:
        """Give the memory these data, repeated."""
        view, chunk = self.memory.view, memoryview(data)
        start = time.perf_counter_ns()
        for at in range(0, self.size, len(chunk)):
            part = min(len(chunk), self.size - at)
            view[at : at + part] = chunk[:part]
        return _rate(1, self.size, time.perf_counter_ns() - start)

    def _pass(self, kind: int) -> dict[str, Any]:
        """Whole passes from end to end, as many as there is time for; less than one where it is slow."""
        ordered, pages, ns = self.lists["ordered"], 0, 0
        ordered.access.first = 0
        while ns < self.seconds * 1e9:
            ordered.run(
                self.memory.address, kind, count=self.pages, seconds=WHOLE * self.seconds - ns / 1e9
            )
            pages, ns = pages + ordered.access.done, ns + ordered.access.elapsed
        return _rate(pages, pages * PAGE, ns)

    def _read(self) -> dict[str, Any]:
        return self._pass(lib.US_ACCESS_READ)

    def _rmw(self) -> dict[str, Any]:
        return self._pass(lib.US_ACCESS_FLIP)

    def _strided(self) -> dict[str, Any]:
        strided = self.lists["strided"]
        strided.run(self.memory.address, lib.US_ACCESS_WORD, seconds=self.seconds)
        a = strided.access
        return _rate(a.done, 8 * a.done, a.elapsed)

    def _touch(
        self, names: Sequence[str], kind: int, *, settle: bool = False, warm: float = 0.0
    ) -> dict[str, Any]:
        """Random accesses, a thread for each list of pages; before it the same for a while, unmeasured.

        Args:
            warm: for that part of the time; 0: until what is resident was turned over.
            settle: until which pages are resident does not depend any more on what was done before.
        """
        lists = [self.lists[name] for name in names]
        # Turned over: what the workload before has left is dirty or not, near or scattered.
        before = SETTLED * self.pages if settle else TURNED * self.limit // PAGE // len(lists)
        failures: list[BaseException] = []
        ready = threading.Barrier(len(lists))

        def run(one: Accesses) -> None:
            try:
                if warm:
                    one.run(self.memory.address, kind, seconds=warm * self.seconds)
                else:
                    one.run(self.memory.address, kind, count=before, seconds=WHOLE * self.seconds)
                ready.wait()
                one.run(self.memory.address, kind, seconds=self.seconds)
            except BaseException as exc:
                failures.append(exc)
                ready.abort()

        threads = [threading.Thread(target=run, args=(one,)) for one in lists[1:]]
        for thread in threads:
            thread.start()
        run(lists[0])
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        done = sum(one.access.done for one in lists)
        ns = max(one.access.elapsed for one in lists)
        return {
            **_rate(done, done * PAGE, ns),
            "threads": len(lists),
            **self._quantiles(lists),
        }

    def _quantiles(self, lists: Sequence[Accesses]) -> dict[str, int]:
        """Of all accesses together, in nanoseconds. Takes no memory, which is short where this is asked."""
        samples, count = ffi.from_buffer("uint32_t[]", self.samples), 0
        for one in lists:
            ffi.memmove(samples + count, ffi.from_buffer(one.ns), 4 * one.timed)
            count += one.timed
        return {
            name: int(lib.us_select(samples, count, min(count - 1, int(q * count))))
            for name, q in QUANTILES.items()
        }

    def _random(self) -> dict[str, Any]:
        return self._touch(["uniform"], lib.US_ACCESS_READ)

    def _zipf(self) -> dict[str, Any]:
        return self._touch(["zipf"], lib.US_ACCESS_READ, settle=True)

    def _tenth(self) -> dict[str, Any]:
        return self._touch(["tenth"], lib.US_ACCESS_READ, settle=True)

    def _write(self) -> dict[str, Any]:
        return self._touch(["uniform"], lib.US_ACCESS_WRITE)

    def _random2(self) -> dict[str, Any]:
        return self._touch(["first", "second"], lib.US_ACCESS_READ)

    def _write2(self) -> dict[str, Any]:
        return self._touch(["first", "second"], lib.US_ACCESS_WRITE)

    def _loaded(self) -> dict[str, Any]:
        """Random reads beside two threads that do nothing but compute."""
        end = lib.us_now_ns() + round((1 + WARM + 0.05) * self.seconds * 1e9)
        spinning = [threading.Thread(target=lib.us_spin, args=(end,)) for _ in range(2)]
        for thread in spinning:
            thread.start()
        time.sleep(0.02 * self.seconds)
        found = self._touch(["uniform"], lib.US_ACCESS_READ, warm=WARM)
        for thread in spinning:
            thread.join()
        return found

    # ---- by numpy

    def _prepare_panels(self) -> None:
        """Room for two panels and their product, and whatever BLAS allocates at first."""
        np, name = self.numpy, NUMBERS.get(self.spec["data"])
        if name is None:
            return
        kind = np.dtype(name)
        side = math.isqrt(self.size // 2 // kind.itemsize)
        if side > PANEL:
            side -= side % PANEL
        product = np.float32 if kind == np.float32 else np.float64
        panel = min(PANEL, side)
        self.shape = (kind, side, panel)
        self.left = np.ones((panel, side), product)
        self.right = np.ones((side, panel), product)
        self.product = np.ones((panel, panel), product)
        np.matmul(self.left, self.right, out=self.product)

    def _matmul(self) -> dict[str, Any] | None:
        """Panels of one half of the memory times panels of the other, as many as there is time for."""
        if self.spec["data"] not in NUMBERS:
            return None
        np, (kind, side, panel) = self.numpy, self.shape
        length = side * side * kind.itemsize
        one, other = (
            np.frombuffer(self.memory.view[at : at + length], kind).reshape(side, side)
            for at in (0, self.size // 2)
        )
        steps = side // panel
        start, done, ns = time.perf_counter_ns(), 0, 0
        while ns < self.seconds * 1e9:
            i, j = done // steps % steps, done % steps
            if j == 0:
                np.copyto(self.left, one[i * panel : (i + 1) * panel])
            np.copyto(self.right, other[:, j * panel : (j + 1) * panel])
            np.matmul(self.left, self.right, out=self.product)
            done += 1
            ns = time.perf_counter_ns() - start
        return _rate(done, done * length // steps, ns)

    def _program(self, work: str) -> dict[str, Any]:
        """One of programs.NUMPY, after the memory was given its data anew."""
        assert self.programs is not None
        if self.programs.source is None:
            self._fill()
            self.programs.attach(self.memory.view)
        return _rate(*self.programs.run(work, WHOLE * self.seconds))

    def _library(self, work: str) -> dict[str, Any]:
        """One of programs.LIBRARIES, on the data that it is for."""
        assert self.libraries is not None
        data = self.libraries.data_of(work)
        if self.holds is not data:
            self._put(data)
            self.holds = data
        return _rate(*self.libraries.run(work, self.memory.view, WHOLE * self.seconds))

    def _sort(self) -> dict[str, Any]:
        """More than the limit's bytes, or all there are, in place; then they are looked at."""
        np = self.numpy
        kind = np.dtype(NUMBERS.get(self.spec["data"], "int64"))
        length = min(self.size, int(SORTED * self.limit)) // PAGE * PAGE
        words = np.frombuffer(self.memory.view[:length], kind)
        if self.holds is not None:
            self._fill()
        if self.programs is not None or self.holds is not None:  # which keep no sums
            lib.us_page_sums(self.memory.address, length // PAGE, self.sums)
        start = time.perf_counter_ns()
        words.sort()
        ns = time.perf_counter_ns() - start
        total = 0
        for at in range(0, len(words), ELEMENTS):
            part = words[at : at + ELEMENTS + 1]
            if not bool((part[1:] >= part[:-1]).all()):
                raise WrongBytes("what was sorted is not in order")
            if kind.itemsize == 8:  # each word whole, so the sum of all is what it was
                total += int(words[at : at + ELEMENTS].view(np.uint64).sum(dtype=np.uint64))
        whole = sum(ffi.unpack(self.sums, length // PAGE))
        if kind.itemsize == 8 and (total - whole) % (1 << 64):
            raise WrongBytes("what was sorted holds other words than before")
        return _rate(1, length, ns)


def _rate(count: int, size: int, ns: int) -> dict[str, Any]:
    return {"count": count, "bytes": size, "ns": ns}


# ---- where the data fit


def fits(spec: dict[str, Any], chunk: bytes) -> dict[str, Any]:
    """Plain memory and a region whose limit has room for it, in turn: nanoseconds of the same work.

    First touch: the data are written to fresh memory. Then a pass from end to end, and random reads.
    """
    subject = Subject(spec, chunk)
    found: dict[str, dict[str, list[int]]] = {work: {"plain": [], "uswap": []} for work in FITS}
    with Pager(**spec["options"]) as pager:
        end = time.monotonic() + spec["seconds"] * 4
        while not found["touch"]["plain"] or time.monotonic() < end:
            _fits_once(subject, pager, found)
            gc.collect()
    return found


def _fits_once(subject: Subject, pager: Pager, found: dict[str, dict[str, list[int]]]) -> None:
    size = subject.size
    plain = huge_memory(size)
    region = pager.region(size)
    addresses = {"plain": address_of(plain), "uswap": region.address}
    ordered, uniform = subject.lists["ordered"], subject.lists["uniform"]
    order = ["plain", "uswap"]
    if len(found["touch"]["plain"]) % 2:
        order.reverse()
    for name in order:
        ordered.access.first = 0
        ordered.run(addresses[name], lib.US_ACCESS_WRITE, count=subject.pages, seconds=60)
        found["touch"][name].append(ordered.access.elapsed)
    room, uniform.access.ns_room = uniform.access.ns_room, 0
    for name in (*order, *reversed(order)):
        for work, one, count in (("read", ordered, subject.pages), ("random", uniform, LIST // 4)):
            one.access.first = 0
            one.run(addresses[name], lib.US_ACCESS_READ, count=count, seconds=60)
            found[work][name].append(one.access.elapsed)
    uniform.access.ns_room = room
    plain.close()


# ---- the process


def _answer(**found: Any) -> None:
    line = (json.dumps(found) + "\n").encode()
    while line:
        try:
            line = line[os.write(1, line) :]
        except (
            OSError
        ) as exc:  # the pipe's pages are the cgroup's, which may have none to give just now
            if exc.errno not in (errno.ENOMEM, errno.EFAULT):
                raise
            time.sleep(0.01)


def _check(error: int, what: str) -> None:
    if error < 0:
        raise OSError(-error, f"{what}: {os.strerror(-error)}")


def main() -> None:
    """Do what stdin says."""
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: not to outlive the benchmark
    spec = json.load(sys.stdin)
    if os.getppid() != spec["parent"]:
        return
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ[name] = "1"  # threads that wait for each other measure the machine's other work
    chunk = os.pread(spec["chunk"][0], spec["chunk"][1], 0)
    if spec["memory"] == "fits":
        _answer(fits=fits(spec, chunk))
        return
    subject = Subject(spec, chunk)
    if spec.get("cgroup"):
        with open(spec["cgroup"], "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    with MEMORY[spec["memory"]](spec) as memory:
        _answer(about=memory.about())  # at the end once more, if it comes to that
        subject.run(memory)
        _answer(about=memory.about())


if __name__ == "__main__":
    main()
