# SPDX-License-Identifier: MIT
"""`uswap bench`: it measures what it says it measures. No speed is asserted."""

from __future__ import annotations

import errno
import json
import mmap
import os
import sys
from pathlib import Path

import pytest

from uswap._core import ffi, lib
from uswap.bench import common, objects
from uswap.commands import main

from child import run_child


def run_main(*argv: str) -> int:
    """Run a command; in a child, since it touches paged memory."""
    sys.exit(main(list(argv)))


# ---- what is measured with


@pytest.mark.parametrize("kind", common.DATA)
def test_data(kind: str) -> None:
    """Data have the length asked for, and are the same each time."""
    make = common.DATA[kind]
    data = common.make_data(make, 100_000)
    assert len(data) == 100_000
    assert data == common.make_data(make, 100_000)
    assert len(common.make_data(make, common.CHUNK + 8)) == common.CHUNK + 8


@pytest.mark.parametrize("block", [4096, 65536])
def test_halved_data(block: int) -> None:
    """The integers that are to be halved are halved, at each block size."""
    common.load_codec("lz4")
    below, make = common.halved("lz4", block)
    assert below > 1000
    assert common.run_codec("lz4", make(1 << 20), block).ratio == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("scattered", [False, True])
def test_codec_run(scattered: bool) -> None:
    """Each block is timed once, both ways; what does not compress counts as it is."""
    common.load_codec("lz4")
    run = common.run_codec("lz4", common.DATA["random"](1 << 20), 4096, scattered=scattered)
    assert len(run.compress_ns) == len(run.decompress_ns) == 256
    assert min(run.decompress_ns) > 0
    assert run.packed == run.raw == 1 << 20


def test_codec_run_refuses() -> None:
    """Less than a block is an error, not a crash."""
    with pytest.raises(OSError, match="codec lz4"):
        common.run_codec("lz4", b"short", 4096)


@pytest.mark.parametrize("write", [0, 1])
def test_touch(write: int) -> None:
    """Touching times each access, and changes no byte."""
    memory = bytearray(range(256)) * 256
    base = common.address_of(memory)
    addresses = ffi.new("uint64_t[]", [base + i * 4096 for i in range(16)])
    ns = ffi.new("uint64_t[]", 16)
    assert lib.us_touch(addresses, 16, write, ns) == 0
    assert all(0 < value < 10**9 for value in ffi.unpack(ns, 16))
    assert memory == bytearray(range(256)) * 256


def test_sweep() -> None:
    """A sweep reads every word; with write it flips the lowest bit of each."""
    words = [3, 2**64 - 1, 10, 2**40] * 1024
    memory = bytearray(b"".join(word.to_bytes(8, "little") for word in words))
    base = common.address_of(memory)
    assert lib.us_sweep(base, len(memory), 0) == sum(words) % 2**64
    assert lib.us_sweep(base, len(memory), 1) == sum(words) % 2**64
    assert memory[:8] == (2).to_bytes(8, "little")
    assert lib.us_sweep(base, len(memory), 0) == sum(word ^ 1 for word in words) % 2**64


def test_load() -> None:
    """What others take of the CPUs' time is a part."""
    others = common.Load().others()
    assert others is None or 0 <= others <= 1.01


def test_objects() -> None:
    """Objects are packed whole, and a span is the pages of its object."""
    common.load_codec("lz4")
    data = common.DATA["random"](1 << 20) + common.DATA["int64"](1 << 20)
    with objects.Objects("lz4", data, 16384) as packed:
        assert packed.count == 128
        assert 1 << 20 < packed.payload < 2 << 20
        image = packed.pack(256 << 10)
        assert image.payload == packed.payload
        assert image.written == image.payload + image.padding + 128 * 32  # headers of objects
        assert image.written <= image.segments * (256 << 10)
        assert len(image.spans) == 128
        assert all(offset % 4096 == length % 4096 == 0 for offset, length in image.spans)
        assert max(length for _, length in image.spans) == 5 * 4096
        # An object that does not compress lies in its span as it is.
        assert data[:16384] in image.memory[: image.spans[0][1]]
        whole = packed.pack(256 << 10, large=0)
        assert whole.padding > image.padding
        assert sum(length for _, length in whole.spans) <= sum(n for _, n in image.spans)
        with pytest.raises(OSError, match="segments of 8192 bytes"):
            packed.pack(8192)


@pytest.mark.parametrize("engine", [objects.PLAIN, 1, 2])
def test_read_spans(engine: int, tmp_path: Path) -> None:
    """Each span is read and timed once, whatever reads; what is beyond the end is an error."""
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 10))
    with path.open("rb") as file:
        try:
            ns = objects.read_spans(file.fileno(), [(0, 4096), (16384, 49152)] * 200, engine)
        except OSError as exc:
            if engine != 1 or exc.errno not in (errno.EPERM, errno.ENOSYS):
                raise
            pytest.skip("no io_uring here")
        assert len(ns) == 400
        assert min(ns) > 0
        with pytest.raises(OSError, match="reading"):
            objects.read_spans(file.fileno(), [(65536, 4096)], engine)


@pytest.mark.parametrize("segment", [64 << 10, 1 << 20])
def test_objects_out(segment: int, tmp_path: Path) -> None:
    """What is brought to the file is, packed, what packing gives, and else the blocks; reads go along."""
    common.load_codec("lz4")
    data = common.DATA["int64"](2 << 20) + common.DATA["random"](1 << 20)
    room = 4 << 20
    with (
        objects.Objects("lz4", data, 16384) as made,
        objects.target_file(str(tmp_path), data, 2 * room) as fd,
    ):
        image = made.pack(segment)
        reads = [(room + 4096 * i, 8192) for i in range(100)]
        for _ in range(2):  # the pool is filled anew each time
            moved = made.out(fd, segment, room, reads=reads)
            assert moved.written == image.written
            assert min(moved.ns, moved.cpu_ns) > 0
            assert 0 < len(moved.read_ns) <= 100
            assert min(moved.read_ns) > 0
            with os.fdopen(os.dup(fd), "rb", buffering=0) as file, mmap.mmap(-1, room) as there:
                file.seek(0)
                assert file.readinto(there) == room
                for at in range(0, image.segments * segment, segment):
                    used = int.from_bytes(image.memory[at + 40 : at + 44], "little")
                    assert there[at : at + used] == image.memory[at : at + used]
        moved = made.out(fd, segment, room, packed=False, engine=objects.ENGINES["threads"])
        assert moved.written == len(data)
        with os.fdopen(os.dup(fd), "rb", buffering=0) as file, mmap.mmap(-1, len(data)) as there:
            file.seek(0)
            assert file.readinto(there) == len(data)
            assert there[:] == data
        with pytest.raises(OSError, match="writing objects"):
            made.out(fd, segment, segment)  # no room
        assert made.out(fd, segment, room).written == image.written
        with pytest.raises(OSError, match="writing objects"):
            made.out(fd, 8192, room)
    assert list(tmp_path.iterdir()) == []


def test_read_spans_apart(tmp_path: Path) -> None:
    """The same in a process of its own."""
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 10))
    with path.open("rb") as file:
        ns = objects.read_spans_apart(file.fileno(), [(0, 4096), (4096, 8192)])
    assert len(ns) == 2
    assert min(ns) > 0


# ---- the command


def test_latency() -> None:
    """Each kind of fault is measured, and the faults were of that kind."""
    result = run_child(
        run_main, args=["bench", "latency", "--size", "4MiB", "--rounds", "2", "--json"]
    )
    answer = json.loads(result.stdout)
    series = {(one["kind"], one["threads"]): one for one in answer["series"]}
    for threads in (1, 2):
        for kind in ("kernel", "empty", "filled", "read", "write", "protected", "outbox"):
            one = series[kind, threads]
            assert one["count"] > 400
            assert 0 < one["p50"]["median"] <= one["p99"]["median"] <= one["max"]["median"]
            if kind not in ("kernel", "outbox"):
                assert min(one["seen"]) > 0.95
    assert ("floor", 1) in series
    assert ("codec", 1) in series
    assert answer["criterion"]["goal"] == 1.3
    assert answer["criterion"]["median"] > 0
    assert answer["ratio"] > 1.5


def test_latency_text_and_plot(tmp_path: Path) -> None:
    """The table is printed, and the picture written; other blocks and data work."""
    pytest.importorskip("matplotlib")
    plot = tmp_path / "latency.svg"
    argv = ["bench", "latency", "--size=4MiB", "--rounds=1", "--threads=1", "--block=16KiB"]
    result = run_child(
        run_main,
        args=[*argv, "--data=random", f"--plot={plot}"],
        env={"MPLCONFIGDIR": str(tmp_path)},
    )
    assert "pooled, read" in result.stdout
    assert "goal: pooled read at most 1.3 times" in " ".join(result.stdout.split())
    assert result.stderr == ""
    assert plot.read_text(encoding="utf-8").startswith("<?xml")


def test_throughput() -> None:
    """Both cases are measured at each block size, and the sums of what was read are right."""
    argv = ["bench", "throughput", "--size=16MiB", "--rounds=1", "--block=4KiB,64KiB"]
    result = run_child(run_main, args=[*argv, "--write", "--json"])
    answer = json.loads(result.stdout)
    assert [row["block"] for row in answer["blocks"]] == [4096, 65536]
    for row in answer["blocks"]:
        assert row["ratio"] == pytest.approx(2, rel=0.02)
        assert {"evicted", "over limit", "rmw evicted", "rmw over limit", "codec"} == set(
            row["rates"]
        )
        assert all(rate > 0 for rates in row["rates"].values() for rate in rates)
        assert row["stats"]["over limit"]["faults"]["pooled"] > 0
    assert answer["memory"][0] > 0


def test_filter() -> None:
    """With --filter numbers are shuffled, by the pager and for the codec alone."""
    # One worker: of two, one compresses the second block while the other finds the filter by the first.
    argv = ["bench", "throughput", "--size=16MiB", "--rounds=1", "--block=16KiB", "--data=int64"]
    argv += ["--filter=byte8", "--workers=1"]
    answer = json.loads(run_child(run_main, args=[*argv, "--json"]).stdout)
    (row,) = answer["blocks"]
    assert answer["filter"] == "byte8"
    assert row["ratio"] > 4
    stats = row["stats"]["evicted"]
    assert stats["shuffled_blocks"] == stats["compressed_blocks"] >= 1024
    argv = ["bench", "latency", "--size=4MiB", "--rounds=1", "--threads=1", "--filter=byte8"]
    assert json.loads(run_child(run_main, args=[*argv, "--json"]).stdout)["ratio"] > 4


def test_filter_without_codec(capsys: pytest.CaptureFixture[str]) -> None:
    """A filter with nothing to compress behind it is an error."""
    assert main(["bench", "latency", "--filter=bit8", "--codec=none"]) == 2
    assert "filter bit8 is of no use without a codec" in capsys.readouterr().err


def test_throughput_of_a_file(tmp_path: Path) -> None:
    """With --dir it is the swap file that is read, many blocks at a time."""
    argv = [
        "bench",
        "throughput",
        "--size=32MiB",
        "--rounds=1",
        "--block=16KiB",
        f"--dir={tmp_path}",
    ]
    answer = json.loads(run_child(run_main, args=[*argv, "--json"]).stdout)
    (row,) = answer["blocks"]
    assert set(row["rates"]) == {"evicted", "over limit", "codec"}
    stats = row["stats"]["evicted"]
    assert stats["faults"]["stored"] > 0
    assert stats["faults"]["pooled"] == 0
    assert 0 < stats["reads"] < 32 * 64 // 2  # of 2,048 blocks
    text = run_child(run_main, args=argv).stdout
    assert f"out of a swap file in {tmp_path}" in " ".join(text.split())
    assert "goal" not in text


def test_tiers(tmp_path: Path) -> None:
    """Each touch is a fault that reads from the file as many bytes as the plain reads do."""
    argv = ["bench", "tiers", "--size=16MiB", "--rounds=2", f"--dir={tmp_path}", "--json"]
    answer = json.loads(run_child(run_main, args=[*argv, "--seconds=0.5"], timeout=120).stdout)
    fault, busy, out = answer["stored_fault"], answer["busy_fault"], answer["write_out"]
    assert (fault["goal"], busy["goal"], out["goal"]) == (1.25, 4.0, 0.8)
    for one in (fault, busy, out, out["cpu_ratio"]):
        assert 0 < one["low"] <= one["median"] <= one["high"]
    for one in (fault, busy):
        assert len(one["touched"]) == 2
        assert one["stored_faults"] == one["touched"]
    assert min(fault["touched"]) > 300
    assert min(busy["touched"]) > 0
    assert fault["stored_read"] == pytest.approx(fault["plain_read"], rel=0.05)
    assert [one["kind"] for one in answer["series"]] == ["plain", "stored", "busy", "filling"]
    assert min(answer["filling_fault"]["touched"]) > 0
    for one in answer["series"]:
        assert 0 < one["p50"]["low"] <= one["p50"]["median"] <= one["p99"]["median"]
    assert answer["ratio"] == pytest.approx(2, rel=0.02)
    ways = out["ways"]
    assert {len(rounds) for rounds in ways.values()} == {2}
    assert {one["written"] for one in ways["plain"]} == {one["written"] for one in ways["packed"]}
    assert {one["written"] for one in ways["unpacked"]} == {out["raw"]} == {16 << 20}
    assert min(answer["end_to_end"]["bytes_per_second"]) > 0
    assert answer["sweep"] is None
    assert list(tmp_path.iterdir()) == []


def test_tiers_sweep(tmp_path: Path) -> None:
    """The sweep measures each segment size, layout and engine; the table and the picture are made."""
    pytest.importorskip("matplotlib")
    plot = tmp_path / "tiers.svg"
    argv = ["bench", "tiers", "--size=16MiB", "--rounds=1", "--seconds=0.2", "--data=int64"]
    result = run_child(
        run_main,
        args=[*argv, "--block=4KiB", "--sweep", f"--dir={tmp_path}", f"--plot={plot}"],
        env={"MPLCONFIGDIR": str(tmp_path / "mpl")},
        timeout=180,
    )
    assert result.stderr == ""
    for text in ("plain sequential write", "4 MiB", "to the byte", "in pages", "threads"):
        assert text in result.stdout
    assert plot.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["latency", "--block", "5000"], "not a power of two"),
        (["latency", "--size", "1KiB"], "too small"),
        (["latency", "--rounds", "0"], "accepted: an integer from 1 to 1000"),
        (["latency", "--threads", "1,many"], "accepted: an integer from 1 to 64"),
        (["latency", "--data", "noise"], "invalid choice: 'noise'"),
        (["throughput", "--block", "4KiB,x"], "not a size"),
        (["throughput", "--size", "17MB"], "not a multiple of 4 MiB"),
        (["tiers", "--dir", "/nowhere"], "'/nowhere' does not exist; accepted: a directory"),
        (["tiers", "--size", "1MiB"], "too small"),
        (["tiers", "--seconds", "0"], "accepted: a number from 0.1 to 3600"),
        ([], "required: BENCH"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad argument is a usage error that names it and says what is accepted."""
    with pytest.raises(SystemExit) as end:
        main(["bench", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_plot(capsys: pytest.CaptureFixture[str]) -> None:
    """A plot that can't be written is refused before anything is measured."""
    assert main(["bench", "latency", "--plot", "plot.bmp"]) == 2
    assert "accepted: .png, .svg, .pdf" in capsys.readouterr().err


def test_missing_codec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the codec the command says so, and points to the doctor."""
    monkeypatch.setattr(common.codecs, "find", lambda codec: [])
    assert main(["bench", "throughput"]) == 2
    assert "codec lz4 can't be loaded; `uswap doctor`" in capsys.readouterr().err
