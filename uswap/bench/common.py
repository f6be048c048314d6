# SPDX-License-Identifier: MIT
"""What the benchmarks share: data to page, plain memory beside it, medians, the machine's name."""

from __future__ import annotations

import itertools
import math
import mmap
import os
import platform
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from .. import codecs
from .._core import ffi, lib
from ..sizes import available_memory

__all__ = [
    "DATA",
    "CodecRun",
    "Load",
    "Machine",
    "Progress",
    "Spread",
    "WrongBytes",
    "address_of",
    "halved",
    "load_codec",
    "make_data",
    "plain_memory",
    "run_codec",
    "shuffle",
    "touch",
]

#: Called with what is being done and how much of the whole is done, 0 to 1.
Progress = Callable[[str, float], None]

TOUCHES = 256  # before a signal is looked at
CHUNK = 4 << 20  # bytes of data that are made; longer data repeats them, far beyond any block
SEED = 20240229

_WORDS = """
    the of and to in is that it was for on are with as be at one have this from or had by but
    some what there we can out other were all your when up use how said an each she which their
    time if will way about many then them would write like so these her long make thing see him
    two has look more day could go come did number sound no most people my over know water than
    call first who may down side been now find head stand own page should country found answer
"""


class WrongBytes(AssertionError):
    """What was read is not what was written. Never seen; looked for all the same."""


class Spread(NamedTuple):
    """A figure over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of some values, one a round."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Machine:
    """Where the figures come from."""

    cpu: str
    cpus: int
    kernel: str
    memory: int
    python: str
    uswap: str

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        from .. import __version__

        return cls(
            cpu=_cpu_name(),
            cpus=len(os.sched_getaffinity(0)),
            kernel=platform.release(),
            memory=available_memory().bytes,
            python=platform.python_version(),
            uswap=__version__,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.machine()


class Load:
    """What part of the CPUs' time others took, from when this was made until asked: noise, if much."""

    def __init__(self) -> None:
        self._start = _cpu_times()

    def others(self) -> float | None:
        """The part, 0 to 1; None where /proc does not say. Pagers that have ended are our own."""
        if self._start is None or (now := _cpu_times()) is None:
            return None
        whole, busy, own = (b - a for a, b in zip(self._start, now, strict=True))
        return max(0.0, busy - own) / whole if whole > 0 else None


def _cpu_times() -> tuple[float, float, float] | None:
    """Seconds since boot, all CPUs together: whole, busy (or taken by the host), our own."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            # cpu user nice system idle iowait irq softirq steal guest guest_nice
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    if len(ticks) < 8:
        return None
    second = os.sysconf("SC_CLK_TCK")
    whole = sum(ticks) / second
    return whole, whole - (ticks[3] + ticks[4]) / second, sum(os.times()[:4])


# ---- data


def _integers(below: int) -> Callable[[int], bytes]:
    def make(length: int) -> bytes:
        return array("q", random.Random(SEED).choices(range(below), k=-(-length // 8))).tobytes()

    return make


def _text(length: int) -> bytes:
    words = _WORDS.split()
    weights = [1 / (rank + 2) for rank in range(len(words))]  # as in any language
    chosen = random.Random(SEED).choices(words, weights, k=length // 2 + 1)
    return " ".join(chosen).encode()[:length]


def _walk(length: int) -> bytes:
    steps = random.Random(SEED)
    walk = itertools.accumulate(steps.gauss(0, 1) for _ in range(-(-length // 8)))
    return array("d", walk).tobytes()[:length]


def _normal(length: int) -> bytes:
    values = random.Random(SEED)
    return array("f", (values.gauss(0, 1) for _ in range(-(-length // 4)))).tobytes()[:length]


def _random(length: int) -> bytes:
    return random.Random(SEED).randbytes(length)


#: Kinds of data by name: integers below 1000; a random walk of float64; normally distributed float32; ...
DATA: dict[str, Callable[[int], bytes]] = {
    "int64": _integers(1000),
    "walk": _walk,
    "float32": _normal,
    "text": _text,
    "random": _random,
}


def make_data(make: Callable[[int], bytes], size: int) -> bytes:
    """Return `size` bytes of a kind; beyond CHUNK they repeat, which no block's compression sees."""
    part = make(min(size, CHUNK))[:size]
    return (part * -(-size // len(part)))[:size]


def halved(codec: str, block: int) -> tuple[int, Callable[[int], bytes]]:
    """Find the integers that a codec halves: below which bound, and what makes them.

    The larger the bound the fewer repetitions the codec finds.
    """
    low, high = 2.0, 40.0  # of log2
    for _ in range(12):
        middle = (low + high) / 2
        data = _integers(round(2**middle))(512 << 10)
        if run_codec(codec, data, block).ratio > 2:
            low = middle
        else:
            high = middle
    below = round(2**low)
    return below, _integers(below)


# ---- memory


def address_of(buffer: Any) -> int:
    """Where a buffer lies."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def plain_memory(size: int) -> mmap.mmap:
    """Fresh anonymous memory in small pages, as a region's are; none of them is there yet."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def touch(
    base: int,
    offsets: Sequence[int],
    *,
    write: bool = False,
    start: Callable[[], object] = lambda: None,
    until: float = math.inf,
) -> list[int]:
    """Touch base + each offset once, in order, on this thread; the nanoseconds of each access.

    Args:
        write: read and write back, else read.
        start: called when all is ready.
        until: time.monotonic() at which to stop early.
    """
    count = len(offsets)
    addresses = ffi.new("uint64_t[]", [base + offset for offset in offsets])
    ns = ffi.new("uint64_t[]", count)
    start()
    done = 0
    while done < count and time.monotonic() < until:
        part = min(TOUCHES, count - done)
        lib.us_touch(addresses + done, part, int(write), ns + done)
        done += part
    return list(ffi.unpack(ns, done))


# ---- codecs


def load_codec(codec: str, filter: str = "none") -> str:
    """Load a codec into this process; return where it is from.

    Raises:
        OSError: there is none, or nothing for *filter* to go before.
    """
    if codec == "none" and filter != "none":
        raise OSError(f"filter {filter} is of no use without a codec; accepted: lz4 or zstd")
    if codec == "none":
        return "none"
    loaded = codecs.load(lib, codec)
    if loaded.candidate is not None:
        return loaded.candidate.origin
    raise OSError(f"codec {codec} can't be loaded; `uswap doctor` says what to install")


def shuffle(filter: str) -> dict[str, str]:
    """The option of a pager that is measured beside a codec alone with that filter.

    Which filter the pager takes it finds out by itself.
    """
    return {"shuffle": "off" if filter == "none" else "auto"}


@dataclass(frozen=True)
class CodecRun:
    """A codec by itself: nanoseconds of each block, bytes before and after."""

    compress_ns: Sequence[int]
    decompress_ns: Sequence[int]
    raw: int
    packed: int

    @property
    def ratio(self) -> float:
        """Bytes before by bytes after."""
        return self.raw / self.packed


def run_codec(
    codec: str,
    data: Any,
    block: int,
    *,
    filter: str = "none",
    level: int = 0,
    scattered: bool = False,
) -> CodecRun:
    """Compress and decompress `data` block by block on this thread; load_codec() must have been called.

    Args:
        filter: what is done to a block before it is compressed, and undone after; of codecs.FILTERS.
        scattered: decompress in an order that no cache likes, as random faults do.
    """
    count = len(data) // block
    compress, decompress = ffi.new("uint64_t[]", count), ffi.new("uint64_t[]", count)
    source = ffi.from_buffer(data)
    run = ffi.new(
        "us_codec_run_t *",
        {
            "codec": codecs.number(codec, filter),
            "level": level,
            "block": block,
            "scattered": int(scattered),
            "src": source,
            "len": count * block,
            "compress_ns": compress,
            "decompress_ns": decompress,
        },
    )
    error = lib.us_measure_codec(run)
    if error < 0:
        raise OSError(-error, f"codec {codec}: {os.strerror(-error)}")
    return CodecRun(
        ffi.unpack(compress, count), ffi.unpack(decompress, count), count * block, run.packed
    )
