# SPDX-License-Identifier: MIT
"""Traces: what the pager writes is what was done; what is no trace, or not all of one, is said.

The ring and its writer have a test in C (tests/c/trace_test.c).
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import uswap
from uswap import trace
from uswap._core import lib
from uswap.commands import main
from uswap.stats import KINDS
from uswap.trace.file import AHEAD, GONE, HEADER, MAGIC, MISSED, MORE, OUT, PRESENT, RECORD, REGION

import workload
from child import run_child
from workload import MIB, PAGE

ROOT = Path(__file__).resolve().parents[1]
BUILDS = {
    "sanitized": [
        "-O1",
        "-g",
        f"-fsanitize={os.environ.get('USWAP_SANITIZE', 'address,undefined')}",
        "-fno-sanitize-recover=all",
    ],
    "released": ["-O2"],
}
POOLED, PROTECTED, WAITED = map(KINDS.index, ("pooled", "protected", "waited"))


@pytest.mark.parametrize("build", list(BUILDS))
def test_ring(build: str, tmp_path: Path) -> None:
    """Each record is in the file, in order, or counted; regions find room when faults do not."""
    program = tmp_path / "trace_test"
    sources = [
        ROOT / "tests/c/trace_test.c",
        *(ROOT / f"csrc/{n}.c" for n in ("trace", "sys", "alloc")),
    ]
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-pthread", "-D_GNU_SOURCE"]
    command = ["gcc", *flags, *BUILDS[build], f"-I{ROOT / 'csrc'}", "-o", program, *sources]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for seed in ("1", str(random.randrange(2**32))):
        done = subprocess.run(
            [program, seed], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, (seed, done.stdout, done.stderr)


# ---- what a pager writes


def _figures(stats: uswap.Stats) -> dict[str, Any]:
    return {
        "faults": dict(stats.faults),
        "evicted": stats.evicted_blocks,
        "dropped": stats.evicted_clean_blocks,
        "ahead": stats.readahead_blocks + stats.readahead_empty_blocks,
        "missed": stats.trace_missed,
    }


def traced(path: str, how: str, options: dict[str, Any]) -> dict[str, Any]:
    """What the children of test_records run; returns the counters, and the accesses in order."""
    rng = random.Random(7)
    done: list[tuple[int, int, bool]] = []
    with uswap.Pager(limit=MIB, trace=Path(path), **options) as pager:
        regions = [pager.region(4 * MIB, block="4KiB"), pager.region(3 * MIB + PAGE, block="16KiB")]
        views = [memoryview(region) for region in regions]

        def touch(which: int, at: int, write: bool) -> None:
            done.append((which, at // regions[which].block, write))
            if write:
                page = at - at % PAGE
                views[which][page : page + PAGE] = rng.randbytes(PAGE)
            else:
                views[which][at]

        def work(rng: random.Random) -> None:
            for _ in range(3000):
                which = rng.randrange(2)
                at = rng.randrange(len(views[which]))
                touch(which, at, rng.random() < 0.3)

        if how == "sequential":
            for _ in range(3):
                for at in range(0, len(views[0]), PAGE):
                    touch(0, at, False)
        elif how == "threads":
            threads = [threading.Thread(target=work, args=[random.Random(k)]) for k in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            for which, view in enumerate(views):
                for at in range(0, len(view), PAGE):
                    touch(which, at, True)
            work(rng)
        time.sleep(0.1)
        for region in regions:
            region.evict()
        figures = _figures(pager.stats())
        about = pager.about()["trace"]
        while views:
            views.pop().release()
        regions[1].release()
    return figures | {"done": done, "about": about}


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("random", {"readahead": 0, "pool": "16MiB"}),
        (
            "random",
            {
                "readahead": 0,
                "pool": "1MiB",
                "swapfile": "/var/tmp",
                "swap": "16MiB",
                "segment": "256KiB",
            },
        ),
        ("sequential", {"pool": "16MiB"}),
        ("threads", {"readahead": 0, "servers": 2, "pool": "16MiB"}),
    ],
    ids=["random", "file", "sequential", "threads"],
)
def test_records(how: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Every fault, eviction and block read ahead is there, of the right block, and in order."""
    path = tmp_path / "run.trace"
    did = run_child(traced, args=[str(path), how, options], timeout=120).json
    found = trace.read(path)
    assert did["about"] == str(path)
    assert (found.missed, found.homeless, found.cut) == (0, 0, False)
    assert found.limit == MIB
    assert abs(found.started / 1e9 - time.time()) < 300
    assert [(one.block, one.blocks, one.length) for one in found.regions] == [
        (4096, 1024, 4 * MIB),
        (16384, 193, 3 * MIB + PAGE),
    ]
    assert found.regions[1].base == 1024
    # As they were before the end, which brings all back without a fault.
    assert found.faults == did["faults"]
    assert found.what.count(OUT) == did["evicted"] > 300
    assert (
        sum(f for w, f in zip(found.what, found.flags, strict=True) if w == OUT) == did["dropped"]
    )
    assert found.what.count(AHEAD) == did["ahead"]
    assert (did["ahead"] > 0) == (how == "sequential")
    assert found.regions[0].removed is not None
    assert 0 < max(found.when) / 1e9 < 120
    _in_and_out(found)
    if how == "threads":
        assert {*found.blocks} == {block + which * 1024 for which, block, _ in did["done"]}
        return
    _follows(found, [(block + which * 1024, write) for which, block, write in did["done"]])
    if "swapfile" in options:
        assert found.faults["stored"] > 0


def _in_and_out(found: trace.Trace) -> None:
    """A block comes in, goes out, comes in, ..."""
    inside: set[int] = set()
    for what, block in zip(found.what, found.blocks, strict=True):
        if what == OUT:
            inside.remove(block)
        elif what == PROTECTED:
            assert block in inside
        elif what == WAITED:
            inside.add(block)
        elif what == PRESENT:
            pass  # there, or on its way in
        else:
            assert block not in inside
            inside.add(block)


def _follows(found: trace.Trace, done: Sequence[tuple[int, bool]]) -> None:
    """Each fault of one thread is one of its accesses, in order; between them are hits."""
    inside: set[int] = set()
    just: set[int] = set()  # out since the last fault: the hit may have come before
    k = 0
    for what, flag, block in zip(found.what, found.flags, found.blocks, strict=True):
        if what == OUT:
            inside.discard(block)
            just.add(block)
        elif what == AHEAD:
            inside.add(block)
        else:
            while done[k] != (block, bool(flag)):
                # What a worker brings in is there before it is recorded.
                assert done[k][0] in inside | just or AHEAD in found.what
                k += 1
            k += 1
            inside.add(block)
            just.clear()


def test_memory_is_seen_from_the_start(tmp_path: Path) -> None:
    """With a trace nothing is left unregistered, where touches would not be seen."""
    path = tmp_path / "early"
    run_child(early, args=[str(path)])
    assert trace.read(path).faults["empty"] == 256


def early(path: str) -> None:
    """What the child of test_memory_is_seen_from_the_start runs."""
    with uswap.Pager(limit=64 * MIB, pool=MIB, block="16KiB", trace=path, readahead=0) as pager:
        region = pager.region(4 * MIB)
        with memoryview(region) as view:
            for at in range(0, 4 * MIB, 16384):
                view[at] = 1
        assert pager.stats().plain == 0


def in_directory(directory: str) -> list[str]:
    """What the child of test_directory runs."""
    os.environ["USWAP_TRACE"] = directory
    paths = []
    for _ in range(2):
        with uswap.Pager(limit=MIB, pool=MIB) as pager:
            paths.append(pager.about()["trace"])
    return paths


def test_directory(tmp_path: Path) -> None:
    """In a directory, named in the environment, each pager has a file of its own."""
    paths = run_child(in_directory, args=[str(tmp_path)]).json
    assert len({*paths}) == 2
    assert sorted(paths) == sorted(str(path) for path in tmp_path.iterdir())
    for path in paths:
        assert re.fullmatch(r"uswap-\d+-[01]\.trace", Path(path).name)
        assert trace.read(path).what == b""


def refused(directory: str) -> dict[str, Any]:
    """What the child of test_refused runs."""
    out: dict[str, Any] = {}
    there = Path(directory) / "there"
    there.write_text("precious")
    for name, value in {"exists": str(there), "nowhere": f"{directory}/no/such"}.items():
        try:
            uswap.Pager(limit=MIB, pool=MIB, trace=value)
        except OSError as e:
            out[name] = [type(e).__name__, str(e)]
    try:
        uswap.Pager(limit=MIB, pool=MIB, trace=f"{directory}/late", pager_timeout=1e-9)
    except uswap.PagerStartError as e:
        out["late"] = str(e)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        trace.create(f"{directory}/full", limit=MIB)
    except OSError as e:
        out["full"] = str(e)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return out


def test_refused(tmp_path: Path) -> None:
    """A file that is there is not overwritten; one that can't be made is named; none is left of a failure."""
    out = run_child(refused, args=[str(tmp_path)]).json
    assert out["exists"][0] == "FileExistsError"
    assert "trace exists; accepted: a new path, or a directory" in out["exists"][1]
    assert f"directory '{tmp_path}/no' does not exist" in out["nowhere"][1]
    assert "did not become ready" in out["late"]
    assert f"{tmp_path}/full" in out["full"]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "precious"
    with pytest.raises(TypeError):
        uswap.Pager(trace=3)


# ---- ends that nobody wished for


def killed(path: str, whom: str) -> None:
    """What the children of test_killed run."""
    pager = uswap.Pager(limit=MIB, pool=16 * MIB, block="4KiB", readahead=0, trace=path)
    region = pager.region(4 * MIB)
    view = memoryview(region)
    for at in range(0, len(view), PAGE):
        view[at] = 1
    if whom == "pager":
        time.sleep(0.5)  # the writer looks every 50 ms
    os.kill(pager.pid if whom == "pager" else os.getpid(), signal.SIGKILL)
    time.sleep(60)


@pytest.mark.parametrize("whom", ["client", "pager"])
def test_killed(whom: str, tmp_path: Path) -> None:
    """Killed with SIGKILL, a client leaves a whole trace, a pager one up to the last 50 ms."""
    path = tmp_path / "killed"
    result = run_child(killed, args=[str(path), whom], check=False)
    assert result.returncode == (-signal.SIGKILL if whom == "client" else -signal.SIGABRT), result
    found = trace.read(path)
    assert found.faults["empty"] + found.faults["waited"] == 1024  # for room
    assert found.what.count(OUT) >= 700
    assert not found.cut
    assert found.missed == 0


def unwritten(path: str) -> dict[str, Any]:
    """What the child of test_full_file runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB, block="4KiB", readahead=0, trace=path) as pager:
        room = HEADER.size + 100 * RECORD.size + 5
        resource.prlimit(pager.pid, resource.RLIMIT_FSIZE, (room, room))
        region = pager.region(4 * MIB)
        with memoryview(region) as view:
            view[:] = bytes([7]) * len(view)
            time.sleep(0.2)
            view[0]  # the counter is published when there is something to serve
            region.evict()
            assert view[PAGE] == 7
        pager.check()  # a fault is served before it is counted
        figures = _figures(pager.stats())
        del region
    return figures


def test_full_file(tmp_path: Path) -> None:
    """When the file takes no more, paging goes on, one line says so, and what it lacks is counted exactly."""
    path = tmp_path / "full"
    result = run_child(unwritten, args=[str(path)])
    figures = result.json
    assert result.stderr.count("the trace can't be written any more (File too large)") == 1
    said = re.search(r"the trace lacks (\d+) records", result.stderr)
    assert said is not None, result
    # A region is three records when it comes, and one when it goes.
    everything = sum(figures["faults"].values()) + figures["evicted"] + 4
    assert int(said[1]) == everything - 100
    assert 0 < figures["missed"] <= int(said[1])
    found = trace.read(path)
    assert found.cut
    assert len(found.what) == 100 - 3


# ---- files


def header(**changes: Any) -> bytes:
    """A header, with some fields changed."""
    fields = {
        "magic": MAGIC,
        "version": int(lib.US_TRACE_VERSION),
        "size": HEADER.size,
        "mono": 1000,
        "real": 10**18,
        "limit": MIB,
        "pid": 42,
    }
    return HEADER.pack(*(fields | changes).values())


def rec(what: int, entry: int, when: int = 1000, flags: int = 0) -> bytes:
    """A record."""
    return RECORD.pack(what, flags, 0, entry, when)


def region(first: int, blocks: int, number: int = 0, block: int = 4096) -> bytes:
    """The three records of a region that is added."""
    return (
        rec(REGION, first, flags=block.bit_length() - 1)
        + rec(MORE, number, blocks * block)
        + rec(MORE, blocks, 0x7000_0000_0000)
    )


def write(path: Path, *parts: bytes) -> Path:
    """A file of these parts."""
    path.write_bytes(b"".join(parts))
    return path


def test_accesses(tmp_path: Path) -> None:
    """What counts as an access; entries of a region that has gone are another's blocks."""
    path = write(
        tmp_path / "t",
        header(),
        region(0, 4, 0),
        region(10, 2, 1, 16384),
        rec(POOLED, 1, 1500, 1),
        rec(PROTECTED, 1, 1600, 1),  # the same access, as it were
        rec(OUT, 2),
        rec(AHEAD, 2),
        rec(PRESENT, 2),
        rec(POOLED, 11),
        rec(GONE, 0),
        region(0, 2, 2),
        rec(POOLED, 1, 5000),
        rec(POOLED, 11),
    )
    found = trace.read(path)
    assert [*found.accesses()] == [1, 2, 5, 7, 5]
    assert [*found.accesses(1)] == [5]  # with what lies between left out
    assert [*found.accesses(2)] == [7]
    assert [*found.when][:2] == [500, 600]
    assert found.seconds == 4e-6
    assert found.pid == 42
    assert [(one.id, one.base, one.removed) for one in found.regions] == [
        (0, 0, 0),
        (1, 4, None),
        (2, 6, None),
    ]
    assert found.faults["protected"] == 1


def test_missing_records(tmp_path: Path) -> None:
    """Records that are missing are counted, and those of a region whose beginning is."""
    path = write(
        tmp_path / "t",
        header(),
        rec(MISSED, 7),
        rec(POOLED, 3),
        rec(GONE, 0),
        region(0, 2),
        rec(POOLED, 0),
        rec(MISSED, 5),
        rec(POOLED, 2),
    )
    found = trace.read(path)
    assert (found.missed, found.homeless, [*found.blocks]) == (12, 2, [0])


def test_cut(tmp_path: Path) -> None:
    """A file that ends anywhere is read as far as it goes."""
    whole = header() + region(0, 4) + rec(POOLED, 1) + rec(OUT, 1)
    for length in range(HEADER.size, len(whole) + 1):
        found = trace.read(write(tmp_path / "t", whole[:length]))
        records, rest = divmod(length - HEADER.size, RECORD.size)
        assert found.cut == (rest > 0 or records in (1, 2))
        assert len(found.what) == max(0, records - 3)
        assert len(found.regions) == (records >= 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; accepted: a file that a pager with trace=FILE"),
        (b"uswapSG1" + bytes(100), "is a swap file, which `uswap fsck` reads; accepted: a file"),
        (b"PK" + bytes(100), "is not a trace, but another kind of file; accepted: a file that a"),
        (header()[:40], "ends within its header, after 40 bytes"),
        (header(version=9), "version 9 with a header of 64 bytes; accepted: version 1 with 64"),
        (header(size=128), "version 1 with a header of 128 bytes"),
        (header() + region(0, 4) + rec(99, 0), "record 4 is of no kind there is .99."),
        (header() + rec(MORE, 0), "record 1 is of no kind"),
        (header() + rec(REGION, 0, flags=12) + rec(OUT, 0) + rec(OUT, 0), "should say more"),
        (header() + region(0, 4, block=1024), "4096 bytes in 4 blocks of 2..10"),
        (
            header() + rec(REGION, 0, flags=12) + rec(MORE, 0, 8192) + rec(MORE, 5, 0),
            "8192 bytes in 5 blocks",
        ),
    ],
)
def test_no_trace(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no trace, or damaged, is said, with what would be accepted; the command ends with 2."""
    path = write(tmp_path / "t", content)
    with pytest.raises(trace.NotATrace, match=message):
        trace.read(path)
    assert main(["trace", "show", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there is named."""
    for action in ("show", "simulate"):
        assert main(["trace", action, str(tmp_path / "none")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"uswap trace: {tmp_path}/none: there is no such file; accepted: a ")


# ---- the command


def small(path: Path) -> Path:
    """A trace with two regions of unlike blocks."""
    faults = [rec(POOLED, block % 8, 1000 + block, block % 2) for block in range(40)]
    more = [rec(POOLED, 8 + block % 2, 2000) for block in range(10)]
    return write(
        path,
        header(),
        region(0, 8),
        region(8, 2, 1, 65536),
        *faults,
        *more,
        rec(OUT, 0, flags=1),
        rec(MISSED, 3),
    )


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary, as text and as JSON."""
    path = small(tmp_path / "t")
    assert main(["trace", "show", str(path)]) == 0
    text = capsys.readouterr().out
    assert "process 42" in text
    assert "limit 1 MiB" in text.replace("1.0 MiB", "1 MiB")
    assert re.search(r"pooled +50 +20", text)
    assert "evicted: 1, of which 1 were clean" in text
    assert "3 records are missing" in text
    assert re.search(r"first access +10 +20\.0%", text)
    assert re.search(r"4 to 7 +32 +64\.0%", text)
    assert main(["trace", "show", "--json", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["faults"]["pooled"] == 50
    assert shown["writes"] == 20
    assert (shown["evicted"], shown["dropped"], shown["missed"]) == (1, 1, 3)
    assert [(one["touched"], one["accesses"]) for one in shown["regions"]] == [(8, 40), (2, 10)]
    assert shown["reuse"]["first"] == 10
    assert shown["reuse"]["distances"][1:4] == [8, 0, 32]


def test_simulate_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A region of a trace is replayed; a loop over eight blocks in room for four hits never with LRU."""
    path = small(tmp_path / "t")
    command = ["trace", "simulate", str(path), "--region", "0", "--json"]
    assert main([*command, "--limit", "16KiB,8b,1/2", "--policy", "lru,opt"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["block"] == 4096
    (result,) = found["results"]
    assert (result["accesses"], result["blocks"]) == (40, 8)
    assert [(row["size"], row["policy"], row["misses"]) for row in result["rows"]] == [
        (4, "lru", 40),
        (4, "opt", 25),
        (8, "lru", 8),
        (8, "opt", 8),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there are no accesses to replay; accepted: a FILE, or --pattern"),
        (["FILE", "--pattern", "zipf"], "beside --pattern; accepted: one or the other"),
        (["FILE"], "blocks of 4 KiB, 64 KiB.*accepted: --region"),
        (["FILE", "--region", "2"], "--region=2.*accepted: 0 to 1"),
        (["FILE", "--region", "1", "--limit", "16KiB"], "less than a block of 64 KiB"),
        (["--pattern", "loop", "--limit", "1MiB"], "no bytes; accepted: parts"),
        # What a simulation would ignore is refused as well.
        (["FILE", "--blocks", "100"], "--blocks says nothing of a FILE; accepted: only with --p"),
        (["FILE", "--accesses", "100"], "--accesses says nothing of a FILE"),
        (["FILE", "--seed", "0"], "--seed says nothing of a FILE"),
        (["--pattern", "zipf", "--region", "0"], "--region says nothing of made accesses"),
    ],
)
def test_simulate_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can't be replayed is said, with what can."""
    path = small(tmp_path / "t")
    words = [str(path) if word == "FILE" else word for word in arguments]
    assert main(["trace", "simulate", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trace of nothing is shown, and not replayed."""
    path = write(tmp_path / "t", header(), region(0, 4))
    assert main(["trace", "show", str(path)]) == 0
    capsys.readouterr()
    assert main(["trace", "simulate", str(path)]) == 2
    assert "no accesses" in capsys.readouterr().err
    assert main(["trace", "simulate", str(write(tmp_path / "u", header()))]) == 2
    assert "no accesses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "lru,mru"], "policy='mru' is unknown; accepted: opt, lru"),
        (["--pattern", "zip"], "pattern='zip' is unknown; accepted: zipf"),
        (["--limit", "2"], "limit='2'; accepted: a part above 0"),
        (["--limit", "0b"], "limit='0b'"),
        (["--limit", "1/0"], "limit='1/0'"),
        (["--limit", "x"], "limit='x'"),
        (["--limit", ""], "limit=''"),
        (["--blocks", "1"], "'1'; accepted: an integer from 2 on"),
        (["--accesses", "-3"], "'-3'; accepted: an integer from 1 on"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong argument is named, with what is accepted."""
    with pytest.raises(SystemExit) as ended:
        main(["trace", "simulate", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


# ---- the model of the pager


def zipf_reads() -> dict[str, int]:
    """What the child of test_the_model_is_the_pagers runs: faults, of the pager and of its model."""
    from uswap.trace import patterns, policies

    blocks, size = 2048, 512
    accesses = patterns.make("zipf", blocks=blocks, accesses=40_000, seed=9)
    with uswap.Pager(limit=size * PAGE, pool=16 * MIB, block="4KiB", readahead=0) as pager:
        region = pager.region(blocks * PAGE)
        with memoryview(region) as view:
            for block in range(blocks):
                view[block * PAGE : (block + 1) * PAGE] = workload.data(
                    "numbers", PAGE, random.Random(block)
                )
            begun = sum(pager.stats().faults.values())
            for block in accesses:
                view[block * PAGE]
            faults = sum(pager.stats().faults.values()) - begun
    model = policies.pager([*range(blocks), *accesses], blocks, size).misses - blocks
    before = policies.ghosts([*range(blocks), *accesses], blocks, size).misses - blocks
    return {"faults": faults, "model": model, "before": before}


def test_the_model_is_the_pagers() -> None:
    """The simulator's "pager" has as many faults as the real one, for the same accesses."""
    found = run_child(zipf_reads, timeout=120).json
    assert found["faults"] == pytest.approx(found["model"], rel=0.05)


def hot_beside_pins() -> dict[str, int]:
    """What the child of test_hot_blocks_leave_when_nothing_else_can runs."""
    block, pinned = 65536, 8  # of 16 that may be resident
    with uswap.Pager(limit=MIB, pool=16 * MIB, block=block, readahead=0) as pager:
        region = pager.region(24 * block)
        with memoryview(region) as view:
            view[:] = random.Random(1).randbytes(len(view))
            for _ in range(20):  # all of these are hot, and earn rounds
                for k in range(20):
                    view[k * block]
            with region.pinned(0, pinned * block):
                for _ in range(30):
                    for k in range(pinned, pinned + 9):
                        view[k * block]
                pager.check()
                stats = pager.stats()
        del region
    return {"over": stats.over_limit, "peak": stats.peak_resident, "pinned": stats.pinned}


def test_hot_blocks_leave_when_nothing_else_can() -> None:
    """Blocks with rounds left make room when all others are pinned: the limit holds."""
    found = run_child(hot_beside_pins).json
    assert found["pinned"] == 8 * 65536
    assert found["over"] == 0
    assert found["peak"] <= MIB
