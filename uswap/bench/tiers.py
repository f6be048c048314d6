# SPDX-License-Identifier: MIT
"""The second tier: what a fault costs whose block is in the swap file, and what it costs to get it there.

Faults, in each round on a new pager and a new swap file:

    plain      O_DIRECT pread of the same spans, from a file of the same content, by a process that does
               nothing else: what the disk costs without uswap
    stored     a read of a block that is in the swap file, as the application sees it; nothing else goes on
    busy       the same while what another region has in the pool is written to the file, as fast as it goes
    filling    the same while another thread of the process fills new regions over the limit, so that
               blocks are compressed and segments written all the time, by threads that want the CPUs too

A span is what has to be read to get an object: the whole pages that hold its header and payload. The
plain file is what write-out would write for the same blocks, so the spans are as long, and as many; both
are touched in random order. The first LEAD samples of each are left out.

The way out, by itself and without a pager (see csrc/measure_store.c), in turn to one file:

    plain      the bytes of the packed segments, by one pwrite of a segment after the other
    packed     objects from a pool, packed as they are, with as many writes in flight as write-out has
    unpacked   the same objects, each decompressed first, and the blocks written: what zswap does

And end to end: a region evicted through the pool to the file, compression included.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import random
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..client import Pager
from ..region import OwnRegion, Region
from ..residency import STATES
from ..sizes import format_size
from . import sweep
from .common import (
    DATA,
    SEED,
    Load,
    Machine,
    Progress,
    Spread,
    address_of,
    halved,
    load_codec,
    make_data,
    run_codec,
    touch,
)
from .latency import LEAD, Series, quantile
from .objects import (
    Image,
    Moved,
    Objects,
    image_file,
    read_spans_apart,
    target_file,
    write_plain,
)
from .sweep import Sweep

__all__ = [
    "GOAL_BUSY",
    "GOAL_STORED",
    "GOAL_WRITE",
    "SERIES",
    "WAYS",
    "Result",
    "Tiers",
    "measure",
]

GOAL_STORED = 1.25  # p50 of a stored fault to p50 of the plain read of the same span
GOAL_BUSY = 4.0  # p99 of a stored fault while segments are written to the same when nothing is
GOAL_WRITE = 0.8  # bytes a second of write-out to those of a plain sequential write

SEGMENT = 1 << 20  # bytes: uswap's own default, and of a plain write
POOL = 4  # segments: the smallest there is, so that nearly all of a region is in the file
MOST = 4096  # samples of a series and round, at most
SETTLE = 10.0  # seconds for write-out to come to rest, or to begin, at most
RUN_UP = 32 << 20  # bytes written before faults are timed beside it
STEP = 1 << 20  # bytes that are filled before the thread looks whether to stop

#: The measured series, in the order of a report, and what each is.
SERIES = {
    "plain": "plain O_DIRECT read",
    "stored": "stored fault",
    "busy": "stored fault during write-out",
    "filling": "stored fault while memory fills",
}

#: Ways of the same objects from the pool to a file, and what each is.
WAYS = {
    "plain": "plain sequential write",
    "packed": "write-out, objects as they are",
    "unpacked": "write-out, decompressed",
}


@dataclass(frozen=True)
class Tiers:
    """What to measure: a region of `size` bytes, in a swap file in `directory`.

    Attributes:
        seconds: for faults during write-out, a round, at most.
        sweep: measure segment sizes, layouts and engines too (see bench.sweep).
    """

    directory: str
    block: int = 16384
    size: int = 256 << 20
    rounds: int = 5
    seconds: float = 2.0
    data: str = "halved"
    codec: str = "lz4"
    sweep: bool = False

    @property
    def segment(self) -> int:
        """Bytes of a segment; the largest blocks need more than the default."""
        return max(SEGMENT, 4 * self.block)


@dataclass
class Result:
    """What measure() returns. Times in nanoseconds, sizes in bytes.

    Attributes:
        ratio: of the data, before by after compression.
        touched, stored_faults: of "stored", "busy" and "filling": touches of blocks that were in the file, and the
            faults of that kind which the pager counted meanwhile, a value a round.
        plain_read, stored_read: mean bytes read for each, a value a round.
        busy_rates: bytes a second written to the file while faults of that kind were timed.
        moved: by the way out, a value a round; raw: bytes of the blocks that it moved each time.
        end_to_end: bytes a second written while a region was evicted, a value a round.
        end_to_end_raw: the same in bytes of the region.
    """

    config: Tiers
    machine: Machine
    data: str
    ratio: float
    about: dict[str, str] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    touched: dict[str, list[int]] = field(default_factory=dict)
    stored_faults: dict[str, list[int]] = field(default_factory=dict)
    plain_read: list[float] = field(default_factory=list)
    stored_read: list[float] = field(default_factory=list)
    busy_rates: dict[str, list[float]] = field(default_factory=dict)
    moved: dict[str, list[Moved]] = field(default_factory=dict)
    raw: int = 0
    end_to_end: list[float] = field(default_factory=list)
    end_to_end_raw: list[float] = field(default_factory=list)
    sweep: Sweep | None = None
    others: float | None = None

    def stored_ratio(self) -> Spread:
        """Stored fault to plain read, p50, pair by pair."""
        return self._pairs("stored", "plain", 0.5)

    def busy_ratio(self) -> Spread:
        """Stored fault during write-out to the same on an idle disk, p99, pair by pair."""
        return self._pairs("busy", "stored", 0.99)

    def rates(self, way: str) -> Spread:
        """Bytes written a second."""
        return Spread.of(one.rate for one in self.moved[way])

    def write_ratio(self) -> Spread:
        """Bytes a second of write-out to those of a plain write, pair by pair."""
        pairs = zip(self.moved["packed"], self.moved["plain"], strict=True)
        return Spread.of(packed.rate / plain.rate for packed, plain in pairs)

    def cpu(self, way: str) -> Spread:
        """CPU nanoseconds for each byte of a block that is moved."""
        return Spread.of(one.cpu_ns / self.raw for one in self.moved[way])

    def cpu_ratio(self) -> Spread:
        """CPU time of the way with a decompression to that without, pair by pair."""
        pairs = zip(self.moved["unpacked"], self.moved["packed"], strict=True)
        return Spread.of(unpacked.cpu_ns / packed.cpu_ns for unpacked, packed in pairs)

    def _pairs(self, one: str, other: str, q: float) -> Spread:
        return Spread.of(
            quantile(a, q) / quantile(b, q)
            for a, b in zip(self.series[one].rounds, self.series[other].rounds, strict=True)
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        c = self.config
        return {
            "bench": "tiers",
            "unit": "ns",
            "machine": self.machine.as_dict(),
            "others": self.others,
            "about": self.about,
            "block": c.block,
            "size": c.size,
            "rounds": c.rounds,
            "data": self.data,
            "codec": c.codec,
            "ratio": self.ratio,
            "stored_fault": {
                "goal": GOAL_STORED,
                **self.stored_ratio()._asdict(),
                "touched": self.touched["stored"],
                "stored_faults": self.stored_faults["stored"],
                "plain_read": self.plain_read,
                "stored_read": self.stored_read,
            },
            "busy_fault": {
                "goal": GOAL_BUSY,
                **self.busy_ratio()._asdict(),
                "touched": self.touched["busy"],
                "stored_faults": self.stored_faults["busy"],
                "bytes_per_second": self.busy_rates["busy"],
            },
            "filling_fault": {
                "touched": self.touched["filling"],
                "stored_faults": self.stored_faults["filling"],
                "bytes_per_second": self.busy_rates["filling"],
            },
            "write_out": {
                "goal": GOAL_WRITE,
                **self.write_ratio()._asdict(),
                "raw": self.raw,
                "ways": {
                    way: [
                        {"written": one.written, "ns": one.ns, "cpu_ns": one.cpu_ns}
                        for one in moved
                    ]
                    for way, moved in self.moved.items()
                },
                "cpu_ratio": self.cpu_ratio()._asdict(),
            },
            "end_to_end": {
                "bytes_per_second": self.end_to_end,
                "raw_bytes_per_second": self.end_to_end_raw,
            },
            "sweep": self.sweep.as_dict() if self.sweep else None,
            "series": [one.as_dict() for one in self.series.values()],
        }


def measure(config: Tiers, progress: Progress = lambda _what, _part: None) -> Result:
    """Measure; all that is compared takes turns in each round.

    Raises:
        OSError: there is no codec, or no room for the files.
    """
    load_codec(config.codec)
    load = Load()
    progress("data", 0.0)
    name, source = _data(config)
    ratio = run_codec(config.codec, source[: 4 << 20], config.block).ratio
    result = Result(config, Machine.here(), name, ratio)
    with contextlib.ExitStack() as undo:
        objects = undo.enter_context(Objects(config.codec, source, config.block))
        image = objects.pack(config.segment)
        plain = undo.enter_context(image_file(config.directory, image))
        room = 2 * config.size + config.segment
        target = undo.enter_context(target_file(config.directory, source, room))
        result.raw = objects.raw
        part = 0.6 if config.sweep else 1.0
        for number in range(config.rounds):
            say = _scaled(
                progress,
                f"round {number + 1}: ",
                number / config.rounds * part,
                part / config.rounds,
            )
            say("ways out", 0.0)
            _out_round(config, result, target, objects, image, number)
            say("plain reads", 0.15)
            _plain_round(result, plain, image, number)
            _fault_round(config, result, source, number, say)
    if config.sweep:
        result.sweep = sweep.measure(
            config.directory,
            config.codec,
            config.data,
            config.block,
            config.size,
            config.rounds,
            _scaled(progress, "", part, 1 - part),
        )
    result.series = {kind: result.series[kind] for kind in SERIES}
    result.others = load.others()
    progress("", 1.0)
    return result


def _data(config: Tiers) -> tuple[str, bytes]:
    if config.data == "halved":
        below, make = halved(config.codec, config.block)
        return f"int64 below {below:,}", make_data(make, config.size)
    return config.data, make_data(DATA[config.data], config.size)


def _scaled(progress: Progress, prefix: str, start: float, width: float) -> Progress:
    return lambda what, part: progress(prefix + what, start + part * width)


def _add(result: Result, kind: str, samples: Sequence[int]) -> None:
    series = result.series.setdefault(kind, Series(kind, 1))
    lead = min(LEAD, len(samples) // 4)
    series.rounds.append(array("Q", sorted(samples[lead:])))


# ---- plain reads


def _plain_round(result: Result, fd: int, image: Image, number: int) -> None:
    spans = list(image.spans)
    random.Random(SEED + number).shuffle(spans)
    del spans[min(MOST, len(spans) // 2) :]
    _add(result, "plain", read_spans_apart(fd, spans))
    result.plain_read.append(sum(length for _, length in spans) / len(spans))


# ---- the way out


def _out_round(
    config: Tiers, result: Result, fd: int, objects: Objects, image: Image, number: int
) -> None:
    room = 2 * config.size + config.segment
    ways: dict[str, Callable[[], Moved]] = {
        "plain": lambda: write_plain(fd, image.memory, image.written, SEGMENT),
        "packed": lambda: objects.out(fd, config.segment, room),
        "unpacked": lambda: objects.out(fd, config.segment, room, packed=False),
    }
    names = list(WAYS)
    for name in names[number % 3 :] + names[: number % 3]:  # each is the first now and then
        os.fsync(fd)
        result.moved.setdefault(name, []).append(ways[name]())


# ---- faults


def _fault_round(config: Tiers, result: Result, source: bytes, number: int, say: Progress) -> None:
    size, block = config.size, config.block
    with Pager(
        block=block,
        codec=config.codec,
        shuffle="off",
        limit=size + (16 << 20),  # of this region nothing is evicted but by evict()
        pool=POOL * config.segment,
        segment=config.segment,
        swapfile=config.directory,
        swap=4 * size + 64 * config.segment,
        readahead=0,
    ) as pager:
        result.about = pager.about()
        say("write-out", 0.3)
        region = pager.region(size)
        with memoryview(region) as view:
            view[:] = source
        _evict(result, pager, region)
        say("stored faults", 0.5)
        _settle(pager)
        offsets = _stored(region, number)
        before = pager.stats()
        _touch_stored(result, pager, region, "stored", offsets[: min(MOST, len(offsets) // 2)])
        after = pager.stats()
        reads = after.reads - before.reads
        result.stored_read.append((after.read_bytes - before.read_bytes) / reads if reads else 0.0)
        region.evict()  # drops what was read; the rest of the limit is for what is written now
        say("stored faults beside a thread that fills memory", 0.6)
        with _writing(pager, source) as wait:
            wait()
            _touch_meanwhile(config, result, pager, region, "filling", number)
        del region  # given up, not brought back
    say("stored faults during write-out", 0.8)
    with Pager(
        block=block,
        codec=config.codec,
        shuffle="off",
        limit=4 * size,
        pool=4 * size,
        segment=config.segment,
        swapfile=config.directory,
        swap=4 * size + 64 * config.segment,
        readahead=0,
    ) as pager:
        region, other = pager.region(size), pager.region(2 * size)
        for one in (region, other):
            with memoryview(one) as view:
                for at in range(0, len(view), size):
                    view[at : at + size] = source
            one.evict()
        region.migrate("file")
        _settle(pager)
        sent = threading.Thread(target=other.migrate, args=("file",))
        sent.start()
        try:
            _touch_meanwhile(config, result, pager, region, "busy", number)
        finally:
            sent.join()
        del region, other


def _touch_meanwhile(
    config: Tiers, result: Result, pager: Pager, region: Region, kind: str, number: int
) -> None:
    offsets = _stored(region, number)
    started, written = time.monotonic(), pager.stats().written
    _touch_stored(result, pager, region, kind, offsets[:MOST], until=started + config.seconds)
    elapsed = time.monotonic() - started
    rate = (pager.stats().written - written) / elapsed
    result.busy_rates.setdefault(kind, []).append(rate)


def _evict(result: Result, pager: Pager, region: Region) -> None:
    """From the application's pages to the file: bytes a second."""
    written = pager.stats().written
    started = time.monotonic()
    region.evict()
    elapsed = time.monotonic() - started
    result.end_to_end.append((pager.stats().written - written) / elapsed)
    result.end_to_end_raw.append(region.length / elapsed)


def _settle(pager: Pager) -> None:
    """Wait until nothing is written any more, and what the file system has yet to write is written."""
    end = time.monotonic() + SETTLE
    written = -1
    while written != (now := pager.stats().written) and time.monotonic() < end:
        written = now
        time.sleep(0.05)
    assert pager._swapfile is not None
    os.fsync(pager._swapfile.fd)


def _stored(region: Region, number: int) -> list[int]:
    """Offsets of the blocks that are in the file, in random order."""
    state = STATES.index("stored")
    states = region.residency().states
    offsets = [i * region.block for i, one in enumerate(states) if one == state]
    if len(offsets) < len(states) // 2:
        raise OSError(
            f"only {len(offsets)} of {len(states)} blocks of {format_size(region.block)} are in the"
            " swap file, too few to measure; accepted: a larger size, or data that compress less"
        )
    random.Random(SEED - number).shuffle(offsets)
    return offsets


def _touch_stored(
    result: Result,
    pager: Pager,
    region: Region,
    kind: str,
    offsets: Sequence[int],
    *,
    until: float = math.inf,
) -> None:
    before = pager.stats().faults["stored"]
    samples = touch(region.address, offsets, until=until)
    _add(result, kind, samples)
    # The last fault is counted after its thread has gone on.
    _wait_until(lambda: pager.stats().faults["stored"] - before >= len(samples), 0.5)
    result.touched.setdefault(kind, []).append(len(samples))
    faults = pager.stats().faults["stored"] - before
    result.stored_faults.setdefault(kind, []).append(faults)


@contextlib.contextmanager
def _writing(pager: Pager, source: bytes) -> Iterator[Callable[[], None]]:
    """Another thread that keeps filling new regions, more than the limit has room for.

    Gives a function that waits until write-out is under way.
    """
    stop = threading.Event()
    failed: list[BaseException] = []

    def fill() -> None:
        size = max(4 << 20, len(source) // 8)
        regions: deque[OwnRegion] = deque(maxlen=12)  # one and a half times the limit
        start, at = address_of(source), 0
        try:
            while not stop.is_set():
                region = pager.region(size)
                regions.append(region)  # the oldest is given up, and its place in the file with it
                for done in range(0, size, STEP):
                    if stop.is_set():
                        break
                    ctypes.memmove(region.address + done, start + at, STEP)  # without the GIL
                    at = (at + STEP) % len(source)
        except BaseException as exc:
            failed.append(exc)

    before = pager.stats().written
    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield lambda: _wait_until(
            lambda: bool(failed) or pager.stats().written - before >= RUN_UP, SETTLE
        )
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
