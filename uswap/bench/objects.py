# SPDX-License-Identifier: MIT
"""The second tier's parts by themselves: objects packed as write-out packs them, spans read from a file."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .. import codecs, swapfile
from .._core import ffi, lib

__all__ = [
    "ENGINES",
    "LARGE",
    "PLAIN",
    "Image",
    "Moved",
    "Objects",
    "Span",
    "image_file",
    "read_spans",
    "read_spans_apart",
    "target_file",
    "write_plain",
]

LARGE = 64 << 10  # bytes from which write-out puts an object on a page of its own (see writeout.c)
PLAIN = -1  # instead of an engine: pread
ENGINES = {"io_uring": 1, "threads": 2}  # by the names that Pager.about() gives; see io.h

Span = tuple[int, int]  # offset in a file and length, bytes, both multiples of 4096

READS = 256  # before a signal is looked at


@dataclass(frozen=True)
class Image:
    """What write-out would put into a file: segments one after the other. Bytes, unless said."""

    memory: mmap.mmap
    """Whole segments; page-aligned."""
    segment: int
    segments: int
    """Their number."""
    written: int
    """Bytes that write-out writes: of each segment what is used."""
    payload: int
    padding: int
    """Of the written: neither objects nor their headers."""
    spans: list[Span]
    """Of each object in order: what is read to get it."""


@dataclass(frozen=True)
class Moved:
    """Bytes brought to a file.

    Attributes:
        written: bytes written.
        ns, cpu_ns: time, and CPU time of the process.
        read_ns: of each read that was in flight meanwhile.
    """

    written: int
    ns: int
    cpu_ns: int
    read_ns: Sequence[int] = ()

    @property
    def rate(self) -> float:
        """Bytes written a second."""
        return self.written / self.ns * 1e9


class Objects:
    """Blocks as the pool holds them; a context manager.

    Args:
        codec: load_codec() must have been called for it.
        data: of whole blocks; what remains is left out.
        block: bytes.

    Raises:
        OSError
    """

    def __init__(self, codec: str, data: Any, block: int, *, level: int = 0) -> None:
        out = ffi.new("us_objects_t **")
        self.count = len(data) // block
        self.raw = self.count * block
        _check(
            lib.us_objects_new(
                out, codecs.CODECS[codec], level, block, ffi.from_buffer(data), self.raw
            ),
            f"objects of {block} bytes",
        )
        self._objects = out[0]
        self.payload = int(lib.us_objects_payload(self._objects))

    def __enter__(self) -> Objects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lib.us_objects_free(self._objects)
        self._objects = ffi.NULL

    def pack(self, segment: int, *, large: int = LARGE) -> Image:
        """Pack all of them into segments of so many bytes.

        Args:
            large: payloads of as many bytes or more begin on a multiple of 4096.
        """
        room = 2 * self.raw + 4 * segment
        memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        offsets, lengths = ffi.new("uint64_t[]", self.count), ffi.new("uint32_t[]", self.count)
        image = ffi.new(
            "us_image_t *",
            {
                "segment": segment,
                "large": large,
                "to": ffi.from_buffer(memory),
                "room": room,
                "span_off": offsets,
                "span_len": lengths,
            },
        )
        _check(lib.us_objects_pack(self._objects, image), f"segments of {segment} bytes")
        return Image(
            memory=memory,
            segment=segment,
            segments=image.segments,
            written=image.written,
            payload=image.payload,
            padding=image.padding,
            spans=list(
                zip(ffi.unpack(offsets, self.count), ffi.unpack(lengths, self.count), strict=True)
            ),
        )

    def out(
        self,
        fd: int,
        segment: int,
        room: int,
        *,
        packed: bool = True,
        engine: int = 0,
        large: int = LARGE,
        reads: Sequence[Span] = (),
    ) -> Moved:
        """Move all of them from a pool to the start of a file, as the pager's loop does it.

        Filling the pool is not measured. As many writes are in flight as write-out has.

        Args:
            fd: of a file opened with O_DIRECT, with `room` bytes for this.
            segment: bytes of a write, and of a segment.
            packed: as they are; else each is decompressed first, and blocks are written.
            engine: US_IO_* of io.h (0: the best there is).
            reads: spans of the file of which one is being read all the while.
        """
        offsets = ffi.new("uint64_t[]", [offset for offset, _ in reads])
        lengths = ffi.new("uint32_t[]", [length for _, length in reads])
        ns = ffi.new("uint64_t[]", len(reads))
        out = ffi.new(
            "us_out_t *",
            {
                "how": lib.US_OUT_PACKED if packed else lib.US_OUT_UNPACKED,
                "fd": fd,
                "engine": engine,
                "segment": segment,
                "large": large,
                "room": room,
                "reads_max": len(reads),
                "read_off": offsets,
                "read_len": lengths,
                "read_ns": ns,
            },
        )
        _check(lib.us_objects_out(self._objects, out), "writing objects")
        return Moved(out.written, out.ns, out.cpu_ns, ffi.unpack(ns, out.reads))


def write_plain(fd: int, memory: Any, length: int, each: int) -> Moved:
    """Write `length` bytes of page-aligned memory to the start of a file, by pwrite of `each` bytes."""
    ns, cpu = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    _check(
        lib.us_measure_writes(fd, ffi.from_buffer(memory), length, each, ns, cpu), "plain writing"
    )
    return Moved(length, ns[0], cpu[0])


@contextlib.contextmanager
def image_file(directory: str, image: Image) -> Iterator[int]:
    """A file without a name that holds an image: its descriptor, opened with O_DIRECT."""
    size = image.segments * image.segment
    with _unnamed(directory, size, image.segment) as fd:
        write_plain(fd, image.memory, size, image.segment)
        os.fsync(fd)
        yield fd


@contextlib.contextmanager
def target_file(directory: str, content: bytes, size: int) -> Iterator[int]:
    """A file without a name of `size` bytes (a multiple of 4096), all of it written: `content`, repeated.

    Since the first write of each place costs a file system more than the later ones.
    """
    with _unnamed(directory, size, mmap.PAGESIZE) as fd:
        with mmap.mmap(-1, size) as memory:
            for at in range(0, size, len(content)):
                memory[at : at + len(content)] = content[: size - at]
            write_plain(fd, memory, size, 1 << 20)
        os.fsync(fd)
        yield fd


@contextlib.contextmanager
def _unnamed(directory: str, size: int, multiple: int) -> Iterator[int]:
    file = swapfile.open_swap(directory, size, segment=multiple)
    try:
        yield file.fd
    finally:
        file.close()


def read_spans(fd: int, spans: Sequence[Span], engine: int = PLAIN) -> list[int]:
    """Read spans of an O_DIRECT file one after the other, on this thread; the nanoseconds of each.

    Args:
        engine: PLAIN for pread, else US_IO_* of io.h (1: io_uring, 2: threads).
    """
    count = len(spans)
    offsets = ffi.new("uint64_t[]", [offset for offset, _ in spans])
    lengths = ffi.new("uint32_t[]", [length for _, length in spans])
    ns = ffi.new("uint64_t[]", count)
    for at in range(0, count, READS):
        part = min(READS, count - at)
        error = lib.us_measure_reads(fd, engine, offsets + at, lengths + at, part, ns + at)
        _check(error, "reading")
    return list(ffi.unpack(ns, count))


def read_spans_apart(fd: int, spans: Sequence[Span]) -> list[int]:
    """The same by pread, in a process that does nothing else."""
    start = (
        f"import sys; sys.path[:] = {sys.path!r}; from uswap.bench.objects import _apart; _apart()"
    )
    done = subprocess.run(
        [sys.executable, "-c", start],
        input=json.dumps([fd, spans]),
        stdout=subprocess.PIPE,
        pass_fds=[fd],
        text=True,
        check=True,
    )
    return [int(ns) for ns in json.loads(done.stdout)]


def _apart() -> None:
    fd, spans = json.load(sys.stdin)
    json.dump(read_spans(fd, spans), sys.stdout)


def _check(error: int, what: str) -> None:
    if error < 0:
        raise OSError(-error, f"{what}: {os.strerror(-error)}")
