# SPDX-License-Identifier: MIT
"""`uswap fsck`: what is in a swap file, and what is bad of it.

The files are made here, byte by byte as csrc/segment.h draws them, so that reader and drawing agree.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from uswap import fsck
from uswap.commands import main

SEGMENT = 16384
SPACE = 0x1234_5678_9ABC_DEF0
M64 = 2**64 - 1


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def stamp(space: int, sequence: int) -> int:
    """What ties an object to one use of a segment."""
    z = (space + sequence * 0x9E3779B97F4A7C15) & M64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
    return z ^ z >> 31


def packed(
    number: int,
    sequence: int,
    objects: Sequence[tuple[int, bytes]],
    *,
    space: int = SPACE,
    version: int = 1,
    codec: int = 1,
) -> bytes:
    """A segment of (entry, payload) pairs; a payload of 4096 bytes or more is page-aligned."""
    body = bytearray(64)
    for entry, payload in objects:
        body += bytes(-len(body) % (4096 if len(payload) >= 4096 else 8))
        head = [
            0x6A624F75,
            entry,
            7,
            codec,
            0,
            len(payload),
            2 * len(payload),
            0,
            stamp(space, sequence),
        ]
        head[7] = crc32c(struct.pack("<IIHBBIIIQ", *head) + payload)
        body += struct.pack("<IIHBBIIIQ", *head) + payload
    head = [
        b"uswapSG1",
        version,
        0,
        space,
        sequence,
        number,
        SEGMENT,
        len(body),
        len(objects),
        0,
        0,
    ]
    head[2] = crc32c(struct.pack("<8sIIQQIIIIQQ", *head))
    body[:64] = struct.pack("<8sIIQQIIIIQQ", *head)
    return bytes(body.ljust(SEGMENT, b"\0"))


@pytest.fixture
def swapfile(tmp_path: Path) -> Path:
    """Three segments of this run, one of a former one, one that was never written."""
    path = tmp_path / "swap"
    path.write_bytes(
        packed(0, 5, [(1, b"a" * 100), (2, b"b" * 333), (3, b"c" * 4096)])
        + packed(1, 3, [(1, b"older"), (9, b""), (2, b"older")])
        + packed(2, 8, [(1, b"newest" * 9), (1, b"newest of all")])
        + packed(3, 99, [(1, b"of another run")], space=5)
        + bytes(SEGMENT)
    )
    return path


def flip(path: Path, at: int) -> None:
    """Flip a bit of the byte at `at`."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_good(swapfile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each entry the copy in the segment of the highest sequence, and the last in it, is live."""
    report = fsck.check(swapfile)
    assert report.segment_size == SEGMENT
    assert report.space == SPACE
    assert report.unwritten == 1
    assert report.bad == 0
    assert [(s.id, s.state, s.sequence) for s in report.segments] == [
        (0, "ok", 5),
        (1, "ok", 3),
        (2, "ok", 8),
        (3, "stale", 99),
    ]
    assert [(s.objects, s.live, s.dead, s.bad) for s in report.current] == [
        (3, 2, 1, 0),
        (3, 1, 2, 0),
        (2, 1, 1, 0),
    ]
    assert [s.live_bytes for s in report.current] == [64 + 333 + 4096, 32, 32 + 13]
    assert main(["fsck", str(swapfile)]) == 0
    out = capsys.readouterr().out
    assert "3 segments written, 1 stale (of a former run), 1 never written" in out
    assert "all objects are readable" in out


@pytest.mark.parametrize("at", [64, 68, 74, 80, 88, 96, 195], ids=lambda at: f"byte {at}")
def test_flipped_bit(swapfile: Path, at: int, capsys: pytest.CaptureFixture[str]) -> None:
    """One bad object is found and counted; the others of its segment still are."""
    flip(swapfile, at)
    report = fsck.check(swapfile)
    first = report.segments[0]
    assert (first.state, first.objects, first.live, first.bad) == ("bad", 3, 2, 1)
    assert report.bad == 1
    assert main(["fsck", str(swapfile)]) == 1
    assert "bad objects: 1" in capsys.readouterr().out


def test_bad_header(swapfile: Path) -> None:
    """A segment whose header is bad counts as bad; the rest is read, though it was the first."""
    flip(swapfile, 40)
    report = fsck.check(swapfile)
    assert report.segment_size == SEGMENT
    assert report.segments[0].problem == "bad header"
    assert report.bad == 1
    assert report.total("live") == 3
    assert main(["fsck", str(swapfile)]) == 1


def test_cut_off(swapfile: Path) -> None:
    """A file that ends within a segment: its objects up to there are read, the others missing."""
    data = swapfile.read_bytes()
    swapfile.write_bytes(data[: 2 * SEGMENT + 4096] + bytes(8192))
    assert fsck.check(swapfile).bad == 0  # the segment's used bytes are there
    swapfile.write_bytes(packed(0, 1, [(1, b"x"), (2, b"y" * 8000)])[:8192])
    report = fsck.check(swapfile)
    assert (report.segments[0].live, report.segments[0].bad) == (1, 1)
    assert "cut off" in str(report.segments[0].problem)


def test_other_version(swapfile: Path) -> None:
    """A segment of a version that this program does not know is said to be one."""
    data = bytearray(swapfile.read_bytes())
    data[SEGMENT : 2 * SEGMENT] = packed(1, 3, [(1, b"x")], version=2)
    swapfile.write_bytes(data)
    assert fsck.check(swapfile).segments[1].problem == "version 2"


def test_filters(swapfile: Path) -> None:
    """Objects that were shuffled are counted; a codec or filter that does not exist is a problem."""
    data = bytearray(swapfile.read_bytes())
    data[SEGMENT : 2 * SEGMENT] = packed(1, 3, [(1, b"x"), (2, b"y")], codec=0x31)
    swapfile.write_bytes(data)
    report = fsck.check(swapfile)
    assert [s.shuffled for s in report.segments] == [0, 2, 0, 0]
    assert report.bad == 0
    for codec in (0x71, 0x7F, 0x30, 0x03):
        data[SEGMENT : 2 * SEGMENT] = packed(1, 3, [(1, b"x")], codec=codec)
        swapfile.write_bytes(data)
        second = fsck.check(swapfile).segments[1]
        assert (second.state, second.bad, second.unknown, second.shuffled) == ("bad", 0, 1, 0)
        assert second.problem == f"objects of an unknown codec or filter: 1 ({codec:#04x})"
    assert main(["fsck", str(swapfile)]) == 1


def test_json(swapfile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for programs."""
    assert main(["fsck", "--json", str(swapfile)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["space"] == f"{SPACE:016x}"
    assert answer["total"] == {
        "used": 4096 + 32 + 4096 + (64 + 40 + 32 + 32 + 5) + (64 + 32 + 56 + 32 + 13),
        "objects": 8,
        "live": 4,
        "dead": 4,
        "live_bytes": 64 + 333 + 4096 + 32 + 32 + 13,
        "bad": 0,
    }
    assert len(answer["segments"]) == 4


def test_few_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many segments the first are shown, and every bad one; --all shows all."""
    path = tmp_path / "swap"
    path.write_bytes(b"".join(packed(i, i + 1, [(i, b"x")]) for i in range(40)))
    flip(path, 33 * SEGMENT + 96)
    assert main(["fsck", str(path)]) == 1
    out = capsys.readouterr().out
    assert "segment 33: bad objects: 1" in out
    assert "19 more segments" in out
    assert main(["fsck", "--all", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:7].strip().isdigit()] == [
        *map(str, range(40))
    ]
    assert max(map(len, lines[2:])) <= 80


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is empty"),
        (b"text", "is no swap file, or one that nothing was written to yet: it holds no segment"),
        (bytes(1 << 20), "is no swap file"),
        (b"uswapSG1" * 4096, "is no swap file"),
        (b"uswapTRC" + bytes(5000), "is a trace, which `uswap trace show` reads"),
    ],
)
def test_not_a_swap_file(
    tmp_path: Path, data: bytes, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anything else is refused in one line that says what it is, and what is accepted."""
    path = tmp_path / "other"
    path.write_bytes(data)
    assert main(["fsck", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} {what}" in line
    assert "accepted: the file or device that a pager has as its swapfile=" in line


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there, or a directory, is an error in one line."""
    assert main(["fsck", str(tmp_path / "none")]) == 2
    assert main(["fsck", str(tmp_path)]) == 2
    none, directory = capsys.readouterr().err.splitlines()
    assert f"uswap fsck: {tmp_path}/none: there is no such file; accepted: the file or" in none
    assert f"uswap fsck: {tmp_path}: is a directory; accepted: the file or device" in directory
