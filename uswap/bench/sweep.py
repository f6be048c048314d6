# SPDX-License-Identifier: MIT
"""What the swap file's format and engine were chosen by: segment size, layout, engine.

    segment    write-out with segments of each size, and reads while it runs: the thread that packs is the
               one that sees a read done, so a read also waits for the segment that is being packed
    layout     objects side by side to the byte, against each rounded up to pages of 4 KiB, for blocks of
               each size: bytes written for each byte evicted, and a read of what then has to be read
    engine     a read through io_uring, through threads, and by pread

Parts by themselves, without a pager. All of a kind take turns in each round.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .common import DATA, SEED, Progress, Spread, halved, make_data
from .latency import quantile
from .objects import ENGINES, PLAIN, Image, Objects, Span, image_file, read_spans, target_file

__all__ = ["BLOCKS", "LAYOUTS", "SEGMENTS", "Layout", "Segment", "Sweep", "measure"]

SEGMENTS = (256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20)
BLOCKS = (4 << 10, 16 << 10, 64 << 10, 256 << 10)
READS = 512  # of each kind and round
LAYOUT_SEGMENT = 2 << 20  # bytes: room for some of the largest objects

#: By layout: the payload's length from which an object begins on a page of its own.
LAYOUTS = {"bytes": 0xFFFFFFFF, "pages": 0}


@dataclass
class Segment:
    """A size of segments; one value a round.

    Attributes:
        rates: bytes written a second.
        read_p50, read_p90: nanoseconds of the reads meanwhile.
        reads: their number.
    """

    segment: int
    rates: list[float] = field(default_factory=list)
    read_p50: list[float] = field(default_factory=list)
    read_p90: list[float] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)


@dataclass
class Layout:
    """A layout of blocks of one size. Bytes.

    Attributes:
        layout: a name of LAYOUTS.
        raw, written: of the blocks, and of what write-out writes for them.
        payload: of the written: compressed blocks.
        padding: of the written: neither objects nor their headers; rounding, mostly.
        span: mean bytes read to get an object.
        read_p50: nanoseconds, one value a round.
    """

    block: int
    layout: str
    raw: int
    written: int
    payload: int
    padding: int
    span: float
    read_p50: list[float] = field(default_factory=list)


@dataclass
class Sweep:
    """What measure() returns; engines: p50 of a read in nanoseconds, by engine, a value a round."""

    block: int
    segments: list[Segment] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    engines: dict[str, list[float]] = field(default_factory=dict)

    def engine(self, name: str) -> Spread:
        """The p50 of a read."""
        return Spread.of(self.engines[name])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "block": self.block,
            "segments": [vars(one) for one in self.segments],
            "layouts": [vars(one) for one in self.layouts],
            "engines": self.engines,
        }


def measure(
    directory: str, codec: str, data: str, block: int, size: int, rounds: int, progress: Progress
) -> Sweep:
    """Measure in a directory; `size` bytes of blocks each time. See bench.tiers.Tiers.

    Raises:
        OSError: there is no room, or an engine is refused for another reason than that there is none.
    """
    sweep = Sweep(block)
    _segments(sweep, directory, codec, make_for(data, codec, block)(size), rounds, progress)
    _layouts(sweep, directory, codec, data, size // 4, rounds, progress)
    return sweep


def make_for(data: str, codec: str, block: int) -> Callable[[int], bytes]:
    """What makes data of a kind: "halved" or a name of DATA."""
    make = halved(codec, block)[1] if data == "halved" else DATA[data]
    return lambda size: make_data(make, size)


def _segments(
    sweep: Sweep, directory: str, codec: str, source: bytes, rounds: int, progress: Progress
) -> None:
    half = len(source) + max(SEGMENTS)  # the first is written to, the second is read
    with contextlib.ExitStack() as undo:
        objects = undo.enter_context(Objects(codec, source, sweep.block))
        image = objects.pack(max(SEGMENTS))
        fd = undo.enter_context(target_file(directory, source, 2 * half))
        spans = [(half + at, length) for at, length in image.spans if at + length <= half]
        sweep.segments = [Segment(size) for size in SEGMENTS if size >= 2 * sweep.block]
        for number in range(rounds):
            random.Random(SEED + number).shuffle(spans)
            for row in _turned(sweep.segments, number):
                progress(f"segments, round {number + 1}", 0.5 * number / rounds)
                os.fsync(fd)
                moved = objects.out(fd, row.segment, half, reads=spans)
                row.rates.append(moved.rate)
                times = sorted(moved.read_ns)
                row.reads.append(len(times))
                row.read_p50.append(quantile(times, 0.5))
                row.read_p90.append(quantile(times, 0.9))
            _engines(sweep, fd, spans[:READS])


def _engines(sweep: Sweep, fd: int, spans: list[Span]) -> None:
    for name, engine in {"pread": PLAIN, **ENGINES}.items():
        try:
            times = sorted(read_spans(fd, spans, engine))
        except OSError:
            if name != "io_uring":  # which is often forbidden in containers
                raise
            continue
        sweep.engines.setdefault(name, []).append(quantile(times, 0.5))


def _layouts(
    sweep: Sweep, directory: str, codec: str, data: str, size: int, rounds: int, progress: Progress
) -> None:
    with contextlib.ExitStack() as undo:
        files: list[tuple[Layout, int, list[Span]]] = []
        for block in BLOCKS:
            source = make_for(data, codec, block)(size)
            with Objects(codec, source, block) as objects:
                for layout, large in LAYOUTS.items():
                    progress(f"layout of blocks of {block} bytes", 0.5)
                    image = objects.pack(LAYOUT_SEGMENT, large=large)
                    fd = undo.enter_context(image_file(directory, image))
                    row = _layout(block, layout, objects.raw, image)
                    files.append((row, fd, image.spans))
                    image.memory.close()
        sweep.layouts = [row for row, _, _ in files]
        for number in range(rounds):
            progress(f"layouts, round {number + 1}", 0.6 + 0.4 * number / rounds)
            for row, fd, spans in _turned(files, number):
                random.Random(SEED + number).shuffle(spans)
                row.read_p50.append(quantile(sorted(read_spans(fd, spans[:READS])), 0.5))


def _layout(block: int, layout: str, raw: int, image: Image) -> Layout:
    return Layout(
        block=block,
        layout=layout,
        raw=raw,
        written=image.written,
        payload=image.payload,
        padding=image.padding,
        span=sum(length for _, length in image.spans) / len(image.spans),
    )


def _turned(items: list[Any], number: int) -> list[Any]:
    """In an order in which each is the first now and then."""
    at = number % len(items)
    return items[at:] + items[:at]
