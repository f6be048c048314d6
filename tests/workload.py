# SPDX-License-Identifier: MIT
"""What the children of the tests share: data of all kinds, what the kernel says, the stress run.

Imported in children only, by `import workload`: tests/ is their first place to look.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uswap

PAGE = 4096
KIB = 1 << 10
MIB = 1 << 20
BATCH = 2 * MIB  # that one batch of evictions takes out at most

KINDS = ("zero", "word", "text", "numbers", "random", "half")

_TEXT = b"what leaves comes back, and what comes back is what left; "


def data(kind: str, n: int, rng: random.Random) -> bytes:
    """Return n bytes of a kind: from none at all to compress, to nothing that compresses."""
    if kind == "zero":
        return bytes(n)
    if kind == "word":
        return (rng.randbytes(8) * (n // 8 + 1))[:n]
    if kind == "text":
        start = rng.randrange(len(_TEXT))
        return (_TEXT * (n // len(_TEXT) + 2))[start : start + n]
    if kind == "numbers":
        first = rng.randrange(1000)
        some = struct.pack("<512q", *(first + k * 7 % 1000 for k in range(512)))
        return (some * (n // len(some) + 1))[:n]
    if kind == "half":
        return (rng.randbytes(n // 2) + bytes(n))[:n]
    return rng.randbytes(n)


def evicted(region: uswap.Region) -> None:
    """Evict a region, and make sure that it is out."""
    region.evict()
    where = region.residency()
    assert where.resident == where.leaving == where.outbox == 0, where


# ---- what the kernel says


def resident_bytes(pid: int | str, spans: list[tuple[int, int]]) -> int:
    """Return how many bytes of the spans (address, length) are present, as pagemap says."""
    pages = 0
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for address, length in spans:
            raw = os.pread(pagemap.fileno(), length // PAGE * 8, address // PAGE * 8)
            pages += sum(entry >> 63 for (entry,) in struct.iter_unpack("<Q", raw))
    return pages * PAGE


def descriptors() -> dict[str, str]:
    """Return this process's open descriptors and what they are."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            pass  # that of the directory itself
    return found


def mappings() -> int:
    """Return the number of this process's mappings."""
    with open("/proc/self/maps", "rb") as maps:
        return sum(1 for _ in maps)


def libc(name: str, *args: int) -> int:
    """Call a function of libc with integers that may be addresses; raises OSError on -1."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = ctypes.c_ssize_t
    answer = int(function(*(ctypes.c_size_t(arg) for arg in args)))
    if answer == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return answer


_SAMPLER = """
import os, select, signal, sys
pid, *spans = map(int, sys.argv[1:])
spans = [(spans[k], spans[k + 1]) for k in range(0, len(spans), 2)]
def stopped():
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"
with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
    # Until stdin is closed. To be killed would leave the other standing still for ever.
    while not select.select([0], [], [], 0.03)[0]:
        os.kill(pid, signal.SIGSTOP)
        try:
            while not stopped():
                pass
            pages = 0
            for address, length in spans:
                raw = memoryview(os.pread(pagemap.fileno(), length // 512, address // 512))
                pages += sum(entry >> 63 for entry in raw.cast("Q"))
        finally:
            os.kill(pid, signal.SIGCONT)
        print(pages * 4096, flush=True)
"""


class ResidentSampler:
    """Another process, which stops this one again and again to count pages that are present.

    Standing still, no page can be counted twice while it moves.
    """

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        numbers = [os.getpid(), *(n for span in spans for n in span)]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _SAMPLER, *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._samples: list[int] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._samples.append(int(line))

    def stop(self) -> list[int]:
        """End it; returns what it counted, in bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._thread.join()
        self._process.stdout.close()
        self._process.wait()
        return self._samples


# ---- threads


class Threads:
    """Threads whose first exception is raised where they are joined."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self.stop = threading.Event()

    def start(self, function: Callable[..., object], *args: Any) -> None:
        """Start function(*args); it looks at `stop`."""

        def run() -> None:
            try:
                function(*args)
            except BaseException as e:
                self._errors.append(e)
                self.stop.set()

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Tell them to stop, and wait."""
        self.stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let them run for a with block."""
        try:
            yield
        finally:
            self.join()


# ---- the stress run


class Unit:
    """A span of paged memory that one thread writes, and what it must hold."""

    def __init__(self, view: memoryview, owner: Any) -> None:
        self.view = view
        self.model = bytearray(view)
        self.owner = owner


class Stress:
    """Threads that read, write, evict, prefetch, create and drop, each sure of what it must find.

    Every byte has one thread that writes it; neighbours in one block have different ones.
    """

    def __init__(
        self, pager: uswap.Pager, *, overcommit: int, threads: int, release: bool, seed: int
    ) -> None:
        self.pager = pager
        self.seed = seed
        self.threads = threads
        self.release = release
        self.operations = [0] * threads
        self.migrations = 0
        rng = random.Random(seed)
        total = overcommit * pager.limit
        blocks = [b for b in (4 * KIB, 16 * KIB, 64 * KIB) if 16 * b <= pager.limit]
        self.regions: list[Any] = [pager.region(total // 4, block=b) for b in blocks]
        self.buffers = [bytearray(rng.randbytes(total // 4 + 12345))]
        self.regions += [pager.wrap(buffer) for buffer in self.buffers]
        self.units: list[list[Unit]] = [[] for _ in range(threads)]
        turn = 0
        for region in self.regions:
            view = region._view()
            at = 0
            while at < len(view):
                # Units of all sizes, and not at the borders of blocks.
                end = min(len(view), at + rng.choice((1000, 4096, 16384, 50_000, 131_072)))
                self.units[turn % threads].append(Unit(view[at:end], region))
                turn += 1
                at = end

    def _write(self, rng: random.Random, unit: Unit) -> None:
        n = len(unit.view)
        if rng.random() < 0.5:
            at, end = 0, n
        else:
            at = rng.randrange(n)
            end = min(n, at + rng.randrange(1, 3000))
        new = data(rng.choice(KINDS), end - at, rng)
        unit.view[at:end] = new
        unit.model[at:end] = new

    def _read(self, unit: Unit) -> None:
        if unit.view != unit.model:
            found = bytes(unit.view)
            at = next((k for k, b in enumerate(found) if b != unit.model[k]), None)
            raise AssertionError(
                f"seed {self.seed}: {unit.owner} differs in {len(found)} bytes, first at {at}: "
                + ("right when read again" if at is None else f"{found[at : at + 16].hex()}")
            )

    def _scan(self, units: list[Unit]) -> None:
        for unit in units:
            self._read(unit)

    def _come_and_go(self, rng: random.Random) -> None:
        n = rng.randrange(1, self.pager.limit // 8)
        region = self.pager.region(n, block=rng.choice((4 * KIB, 16 * KIB)))
        content = data(rng.choice(KINDS), n, rng)
        view = memoryview(region)
        view[:] = content
        if rng.random() < 0.5:
            region.evict()
        assert view == content
        # What is released is ordinary memory, and the limit gives way to it.
        if self.release and rng.random() < 0.5:
            region.release()
            assert view == content

    def _migrate(self, rng: random.Random) -> None:
        region, at, n = self._range(rng)
        try:
            region.migrate(rng.choice(self.pager.tiers), at, n)
            self.migrations += 1
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise

    def _pin(self, rng: random.Random) -> None:
        region, at, n = self._range(rng)
        with region.pinned(at, min(n, self.pager.limit // 64)) as view:
            bytes(view[:1])

    def _range(self, rng: random.Random) -> tuple[Any, int, int]:
        region = rng.choice(self.regions)
        at = rng.randrange(region.length)
        return region, at, rng.randrange(min(region.length - at, self.pager.limit // 4)) + 1

    def worker(self, number: int, stop: threading.Event) -> None:
        """What one thread does until it is told to stop."""
        rng = random.Random(f"{self.seed}-{number}")
        units = self.units[number]
        while not stop.is_set():
            what = rng.random()
            if len(self.pager.tiers) > 1 and rng.random() < 0.05:
                self._migrate(rng)
            if rng.random() < 0.02:
                self._pin(rng)
            if what < 0.40:
                self._write(rng, rng.choice(units))
            elif what < 0.80:
                self._read(rng.choice(units))
            elif what < 0.86:
                first = rng.randrange(len(units))
                self._scan(units[first : first + 30])
            elif what < 0.91:
                region, at, n = self._range(rng)
                region.evict(at, n)
            elif what < 0.96:
                region, at, n = self._range(rng)
                region.prefetch(at, n)
            elif what < 0.97:
                region, at, n = self._range(rng)
                region.check(at, n)
            elif what < 0.98:
                # Somebody else's bytes: may change under the hand, but must come.
                bytes(rng.choice(rng.choice(self.units)).view)
            else:
                self._come_and_go(rng)
            self.operations[number] += 1

    def verify(self) -> None:
        """Compare everything."""
        for units in self.units:
            self._scan(units)

    def spans(self) -> list[tuple[int, int]]:
        """The memory that counts as resident: the regions', and what the mover has in hand."""
        from uswap._core import ffi, lib

        length = ffi.new("uint64_t *")
        staging = lib.us_client_staging(self.pager._client, length)
        return [(r.address, r.length) for r in self.regions] + [(int(staging), int(length[0]))]

    def run(self, seconds: float) -> None:
        """Run all threads."""
        threads = Threads()
        for number in range(self.threads):
            threads.start(self.worker, number, threads.stop)
        threads.stop.wait(seconds)
        threads.join()


def stress(
    seconds: float,
    options: dict[str, Any],
    *,
    overcommit: int = 4,
    threads: int = 8,
    limit: int = 4 * MIB,
    sample: bool = True,
    release: bool = True,
) -> dict[str, Any]:
    """Run the stress; returns what a test wants to assert about it."""
    seed = int(os.environ.get("USWAP_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"seed {seed} (USWAP_TEST_SEED={seed} chooses it)", flush=True)
    given = {"limit": limit, **({} if "tiers" in options else {"pool": 64 * MIB}), **options}
    if "delays" in given:
        given["delays"] += f",seed:{seed}"
    with uswap.Pager(**given) as pager:
        it = Stress(pager, overcommit=overcommit, threads=threads, release=release, seed=seed)
        sampler = ResidentSampler(it.spans()) if sample else None
        try:
            it.run(seconds)
        finally:
            samples = sampler.stop() if sampler else []
        stats = pager.stats()
        pager.check()
        it.verify()
        pager.check()
        fresh = pager.region(16 * PAGE)
        fresh.evict()  # registered by that, if it was not
        # The second pin asks for zeros where a page of a changed block were missing, which the threads' seldom do.
        with fresh.pinned(), fresh.pinned() as held:
            assert bytes(held) == bytes(16 * PAGE)
        del fresh, held
        for region in it.regions:
            region.evict()
        pager.check()
        time.sleep(0.1)
        end = pager.stats()
        about = pager.about()
    # Outside of the pager it is ordinary memory, and the same.
    it.verify()
    print(f"{sum(it.operations)} operations; {stats}", file=sys.stderr)
    return {
        "operations": it.operations,
        "faults": stats.total_faults,
        "evicted": stats.evicted,
        "samples": len(samples),
        "most": max(samples, default=0),
        "limit": stats.limit,
        "over_limit": stats.over_limit,
        "pool_used": end.pool_used,
        "density": end.density,
        "copy_retries": stats.copy_retries,
        "move_retries": stats.move_retries,
        "refused_pinned": stats.refused_pinned,
        "refused_noroom": stats.refused_noroom,
        "stored_faults": stats.faults["stored"],
        "written": stats.written,
        "write_errors": stats.write_errors,
        "read_retries": stats.read_retries,
        "rewritten": stats.rewritten,
        "swap_used": stats.swap_used,
        "lost": stats.lost,
        "injected": pager.stats().injected,  # some fail only at the end
        "migrations": it.migrations,
        "came": [tier.came_blocks for tier in stats.tiers],
        "about": about,
    }


def check_injected(injected: dict[str, int], inject: str) -> None:
    """Assert that each failure of an option ``inject`` took effect (see `Stats.injected`), and no other."""
    kinds = ("SHORT", "FLIP", "LATE", "SLOW")
    parts = [one.split(":") for one in inject.split(",") if one]
    wanted = {f"{op}:{error}" if error in kinds else op for op, error, _ in parts}
    assert injected.keys() <= wanted, injected
    missing = wanted - injected.keys()
    scans = Path("/sys/kernel/mm/ksm/full_scans")
    if scans.exists() and int(scans.read_text()) > 0:
        missing.discard("vector")  # where KSM has run, clean blocks are dropped one by one
    assert not missing, f"never failed: {missing}; did: {injected}"


def collect() -> None:
    """Have all garbage gone."""
    for _ in range(3):
        gc.collect()


def anonymous(n: int, seed: int = 1) -> mmap.mmap:
    """Return private anonymous memory, page-aligned, of random bytes."""
    made = mmap.mmap(-1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made[:] = random.Random(seed).randbytes(n)
    return made
