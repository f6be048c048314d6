# SPDX-License-Identifier: MIT
"""The second tier: what a fault costs whose block is in the swap file.

    plain      O_DIRECT pread of the same spans, from a file of the same content, by a process that does
               nothing else: what the disk costs without uswap
    stored     a read of a block that is in the swap file, as the application sees it

A span is what has to be read to get an object: the whole pages that hold its header and payload. The
plain file is what write-out would write for the same blocks, so the spans are as long, and as many.
The two take turns, in random order, on a disk that does nothing else; a new pager and a new file each
round. The first LEAD samples of each are left out.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import swapfile
from ..client import Pager
from ..region import STATES, Region
from ..sizes import format_size
from .common import (
    DATA,
    SEED,
    Load,
    Machine,
    Progress,
    Spread,
    halved,
    load_codec,
    make_data,
    run_codec,
    touch,
)
from .latency import LEAD, Series, quantile
from .objects import Image, Objects, read_spans_apart

__all__ = ["GOAL_STORED", "SERIES", "Result", "Tiers", "measure"]

GOAL_STORED = 1.25  # p50 of a stored fault to p50 of the plain read of the same span

SEGMENT = 1 << 20  # bytes: uswap's own default
POOL = 4 * SEGMENT  # the smallest that such a segment allows: nearly all of a region is in the file
MOST = 4096  # samples of a series and round, at most
SETTLE = 10.0  # seconds for write-out to come to rest, at most

#: The measured series, in the order of a report, and what each is.
SERIES = {
    "plain": "plain O_DIRECT read",
    "stored": "stored fault",
}


@dataclass(frozen=True)
class Tiers:
    """What to measure: a region of `size` bytes, in a swap file in `directory`."""

    directory: str
    block: int = 16384
    size: int = 256 << 20
    rounds: int = 5
    data: str = "halved"
    codec: str = "lz4"


@dataclass
class Result:
    """What measure() returns. Times in nanoseconds, sizes in bytes.

    Attributes:
        ratio: of the data, before by after compression.
        touched, stored_faults: touches of blocks that were in the file, and the faults of that kind
            which the pager counted meanwhile, a value a round.
        plain_read, stored_read: mean bytes read for each, a value a round.
    """

    config: Tiers
    machine: Machine
    data: str
    ratio: float
    about: dict[str, str] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    touched: list[int] = field(default_factory=list)
    stored_faults: list[int] = field(default_factory=list)
    plain_read: list[float] = field(default_factory=list)
    stored_read: list[float] = field(default_factory=list)
    others: float | None = None

    def stored_ratio(self) -> Spread:
        """Stored fault to plain read, p50, pair by pair."""
        return self._pairs("stored", "plain", 0.5)

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
                "touched": self.touched,
                "stored_faults": self.stored_faults,
                "plain_read": self.plain_read,
                "stored_read": self.stored_read,
            },
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
    with Objects(config.codec, source, config.block) as objects:
        image = objects.pack(SEGMENT)
    with plain_file(config.directory, image) as plain:
        for number in range(config.rounds):
            say = _scaled(progress, f"round {number + 1}", number, config.rounds)
            say("plain reads", 0.0)
            _plain_round(config, result, plain, image, number)
            _fault_round(config, result, source, number, say)
    result.others = load.others()
    progress("", 1.0)
    return result


def _data(config: Tiers) -> tuple[str, bytes]:
    if config.data == "halved":
        below, make = halved(config.codec, config.block)
        return f"int64 below {below:,}", make_data(make, config.size)
    return config.data, make_data(DATA[config.data], config.size)


def _scaled(progress: Progress, prefix: str, number: int, count: int) -> Progress:
    return lambda what, part: progress(f"{prefix}: {what}", (number + part) / count)


def _add(result: Result, kind: str, samples: Sequence[int]) -> None:
    series = result.series.setdefault(kind, Series(kind, 1))
    lead = min(LEAD, len(samples) // 4)
    series.rounds.append(array("Q", sorted(samples[lead:])))


# ---- plain reads


@contextlib.contextmanager
def plain_file(directory: str, image: Image) -> Iterator[int]:
    """A file without a name that holds an image: its descriptor, opened with O_DIRECT."""
    file = swapfile.open_swap(directory, len(image.memory), segment=SEGMENT)
    try:
        with memoryview(image.memory) as view:
            for at in range(0, image.segments * SEGMENT, SEGMENT):
                with view[at : at + SEGMENT] as part:
                    if os.pwrite(file.fd, part, at) != SEGMENT:
                        raise OSError(f"a file in {directory}: a write was cut short")
        os.fsync(file.fd)
        yield file.fd
    finally:
        file.close()


def _plain_round(config: Tiers, result: Result, fd: int, image: Image, number: int) -> None:
    spans = list(image.spans)
    random.Random(SEED + number).shuffle(spans)
    del spans[min(MOST, len(spans) // 2) :]
    _add(result, "plain", read_spans_apart(fd, spans))
    result.plain_read.append(sum(length for _, length in spans) / len(spans))


# ---- faults


def _fault_round(config: Tiers, result: Result, source: bytes, number: int, say: Progress) -> None:
    size, block = config.size, config.block
    with Pager(
        block=block,
        codec=config.codec,
        limit=size + (16 << 20),  # nothing is evicted but by evict()
        pool=POOL,
        segment=SEGMENT,
        swapfile=config.directory,
        swap=2 * size + 64 * SEGMENT,
        readahead=0,
    ) as pager:
        result.about = pager.about()
        say("write-out", 0.2)
        region = pager.region(size)
        with memoryview(region) as view:
            view[:] = source
        region.evict()
        _settle(pager)
        say("stored faults", 0.5)
        offsets = _stored(region, number)
        _touch_stored(result, pager, region, offsets[: min(MOST, len(offsets) // 2)])
        del region  # given up, not brought back


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
            " swap file: it is full, or can't be written to"
        )
    random.Random(SEED - number).shuffle(offsets)
    return offsets


def _touch_stored(result: Result, pager: Pager, region: Region, offsets: Sequence[int]) -> None:
    before = pager.stats()
    _add(result, "stored", touch(region.address, offsets))
    count = len(offsets)
    # The last fault is counted after its thread has gone on.
    _wait_until(lambda: pager.stats().faults["stored"] - before.faults["stored"] >= count)
    after = pager.stats()
    result.touched.append(count)
    result.stored_faults.append(after.faults["stored"] - before.faults["stored"])
    reads = after.reads - before.reads
    result.stored_read.append((after.read_bytes - before.read_bytes) / reads if reads else 0.0)


def _wait_until(condition: Callable[[], bool], seconds: float = 0.5) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
