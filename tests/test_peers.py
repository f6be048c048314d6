# SPDX-License-Identifier: MIT
"""`uswap bench peers`: what it measures with, and that it undoes what it sets up."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from uswap._core import ffi, lib
from uswap.bench import common, kernel, peers, programs, subject
from uswap.bench.peers import runner
from uswap.commands import bench_peers, main
from uswap.reporters import peers as reporter
from uswap.reporters import plot_peers

from child import can_run_as, run_child
from results import MACHINE

MIB = 1 << 20


def run_main(*argv: str) -> int:
    """Run a command; in a child, since it touches paged memory."""
    sys.exit(main(list(argv)))


def machine_state(directory: str) -> dict[str, Any]:
    """All that the kernel's peers change: swap, zram, zswap's parameters, cgroups, files."""
    state: dict[str, Any] = {"swap": kernel.foreign_swap()}
    state["zram"] = sorted(path.name for path in Path("/sys/block").glob("zram*"))
    state["zswap"] = {
        path.name: path.read_text().strip() for path in kernel.ZSWAP.glob("*") if path.is_file()
    }
    state["cgroups"] = sorted(
        str(Path(top) / name)
        for top, names, _ in os.walk(kernel.CGROUPS)
        for name in names
        if name.startswith(kernel.NAME)
    )
    state["files"] = sorted(os.listdir(directory))
    return state


def why_no_kernel_peers() -> str | None:
    """Why they can't be tested here."""
    if swap := kernel.foreign_swap():
        return f"the machine swaps to {swap[0]}"
    return kernel.why_no_cgroup() or kernel.why_no_zram() or kernel.why_no_zswap()


@pytest.fixture
def kernel_peers() -> None:
    """Skip where the kernel's peers can't be had."""
    if why := why_no_kernel_peers():
        pytest.skip(why)


# ---- what is measured with


def accesses(pages: array[int], memory: bytearray, *, timed: bool = True) -> subject.Accesses:
    """Accesses to `memory`, which holds what it holds now."""
    count = len(memory) // 4096
    sums = ffi.new("uint64_t[]", count)
    lib.us_page_sums(common.address_of(memory), count, sums)
    chunk = bytes(range(256)) * 64  # four pages
    chunk_sums = ffi.new("uint64_t[]", 4)
    lib.us_page_sums(common.address_of(chunk), 4, chunk_sums)
    return subject.Accesses(sums, chunk, chunk_sums, pages, timed=timed)


@pytest.mark.parametrize("timed", [False, True])
def test_accesses(timed: bool) -> None:
    """Each kind does to the pages of the list, in order, what its name says; the sums follow."""
    memory = bytearray(random.Random(1).randbytes(8 * 4096))
    before = bytes(memory)
    base = common.address_of(memory)
    one = accesses(array("I", [0, 3, 5]), memory, timed=timed)
    one.run(base, lib.US_ACCESS_READ, count=7, seconds=10)
    assert (one.access.done, one.access.wrong, one.access.first) == (7, 0, 1)
    assert one.timed == (7 if timed else 0)
    assert one.access.elapsed > 0
    assert memory == before
    one.run(base, lib.US_ACCESS_WORD, count=2, seconds=10)
    words = [int.from_bytes(before[page * 4096 :][:8], "little") for page in (3, 5)]
    assert one.access.seen == sum(words) % 2**64
    one.run(base, lib.US_ACCESS_FLIP, count=2, seconds=10)
    flipped = bytearray(before)
    for page in (0, 3):
        for at in range(page * 4096, (page + 1) * 4096, 8):
            flipped[at] ^= 1
    assert memory == flipped
    one.run(base, lib.US_ACCESS_READ, count=3, seconds=10)
    assert one.access.wrong == 0
    one.access.first = 1
    one.run(base, lib.US_ACCESS_WRITE, count=1, seconds=10)
    assert memory[3 * 4096 : 4 * 4096] == bytes(range(256)) * 16
    one.run(base, lib.US_ACCESS_READ, count=3, seconds=10)
    assert one.access.wrong == 0
    memory[5 * 4096 + 9] ^= 4
    with pytest.raises(subject.WrongBytes, match="1 of 3 pages"):
        one.run(base, lib.US_ACCESS_READ, count=3, seconds=10)
    with pytest.raises(OSError, match="access"):
        one.run(base, 99, count=1, seconds=10)


def test_accesses_end_in_time() -> None:
    """Without a count they end when the time is over."""
    memory = bytearray(4096)
    one = accesses(array("I", [0]), memory)
    one.run(common.address_of(memory), lib.US_ACCESS_READ, seconds=0.05)
    assert one.access.done > 100
    assert one.access.elapsed > 0.04e9


def test_select() -> None:
    """The value at each place is that of the sorted list."""
    rng = random.Random(2)
    for values in (
        [7],
        [1, 1, 1, 1],
        list(range(50)),
        list(range(50, 0, -1)),
        [rng.randrange(20) for _ in range(200)],
    ):
        ordered = sorted(values)
        for place, value in enumerate(ordered):
            given = ffi.new("uint32_t[]", values)
            assert lib.us_select(given, len(values), place) == value


def test_pages_in_order() -> None:
    """A strided list has each page once; by Zipf's law few pages have most of the accesses."""
    strided = subject._strided(100)
    assert sorted(strided) == list(range(100))
    assert list(strided[:3]) == [0, 16, 32]
    zipf = subject._zipf(1000, random.Random(1))
    counts = sorted(Counter(zipf).values(), reverse=True)
    assert max(zipf) < 1000
    assert 0.3 < sum(counts[:10]) / len(zipf) < 0.6


def test_nine_in_ten() -> None:
    """A tenth of the pages, scattered, has nine accesses in ten."""
    counts = Counter(subject._tenth(1000, random.Random(1)))
    hot = [page for page, _ in counts.most_common(100)]
    whole = sum(counts.values())
    assert sum(counts[page] for page in hot) / whole == pytest.approx(0.9, abs=0.01)
    assert len(counts) == 1000
    assert len({page // 100 for page in hot}) == 10


@pytest.mark.parametrize(("kind", "width"), [("walk", 8), ("float32", 4)])
def test_numbers(kind: str, width: int) -> None:
    """A walk moves by steps of about one; normal numbers are about one in size."""
    values = array("d" if width == 8 else "f", common.DATA[kind](width * 10_000))
    steps = [b - a for a, b in itertools.pairwise(values)] if kind == "walk" else values
    assert sum(step * step for step in steps) / len(steps) == pytest.approx(1, rel=0.1)


# ---- the naive pager


def use_naive_pager() -> dict[str, int]:
    """Write and read at random, by two threads, a quarter being resident; every byte is compared."""
    common.load_codec("lz4")
    size, limit = 4 * MIB, MIB
    made = ffi.new("us_naive_t **")
    assert lib.us_naive_open(made, size, limit, 1) == 0
    view = memoryview(ffi.buffer(ffi.cast("char *", lib.us_naive_address(made[0])), size))
    for at in range(0, size, 4096):
        view[at] = 1
    failures = []

    def work(first: int) -> None:
        rng = random.Random(first)
        model = {}
        for turn in range(6000):
            page = rng.randrange(first, size // 4096, 2)
            at = page * 4096 + rng.randrange(4000)
            if turn % 2:
                data = rng.randbytes(96) if turn % 3 else bytes(96)
                view[at : at + 96] = data
                model[page] = (at, data)
            elif page in model:
                at, data = model[page]
                if view[at : at + 96] != data:
                    failures.append(page)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stats = ffi.new("us_naive_stats_t *")
    assert lib.us_naive_stats(made[0], stats) == 0
    resident = 0
    with open("/proc/self/smaps", encoding="ascii") as file:
        inside = False
        for line in file:
            if "-" in line.split()[0]:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                inside = start <= lib.us_naive_address(made[0]) < end
            elif inside and line.startswith("Rss:"):
                resident = int(line.split()[1]) << 10
    found = {name: int(getattr(stats, name)) for name in ("faults", "evicted", "kept_raw", "kept")}
    view.release()
    lib.us_naive_close(made[0])
    return {**found, "resident": resident, "size": size, "limit": limit}


def test_naive_pager() -> None:
    """It loses no write, keeps the limit, and counts what it keeps."""
    found = run_child(use_naive_pager).json
    assert 0 < found["resident"] <= found["limit"]
    assert found["kept_raw"] == found["size"] - found["limit"]
    assert 0 < found["kept"] < found["kept_raw"]
    assert found["faults"] >= found["evicted"] + found["limit"] // 4096
    assert found["evicted"] > 1000


def test_naive_pager_refuses() -> None:
    """No room for a page, or half a page, is an error."""
    common.load_codec("lz4")
    made = ffi.new("us_naive_t **")
    assert lib.us_naive_open(made, MIB, 4095, 1) < 0
    assert lib.us_naive_open(made, MIB + 1, MIB, 1) < 0
    assert lib.us_naive_open(made, MIB, MIB, 77) < 0


# ---- the command


def test_small(tmp_path: Path) -> None:
    """Every workload is measured on every peer, and every byte checked; the picture is drawn."""
    pytest.importorskip("matplotlib")
    plot = tmp_path / "peers.svg"
    argv = ["bench", "peers", "--peers=uswap,naive,plain", "--size=16MiB", "--rounds=1"]
    result = run_child(
        run_main,
        args=[*argv, "--seconds=0.02", "--json", f"--plot={plot}"],
        env={"MPLCONFIGDIR": str(tmp_path)},
        timeout=120,
    )
    answer = json.loads(result.stdout)
    (table,) = answer["table"]
    assert (table["group"], table["data"], table["over"]) == ("pooled", "int64", 4)
    for key in peers.ROWS.keys() - set(programs.PROGRAMS):
        assert set(table["rows"][key]["figures"]) == {"uswap", "naive", "plain"}
        assert all(one["median"] > 0 for one in table["rows"][key]["figures"].values())
        assert set(table["rows"][key]["ratios"]) == {"uswap/naive", "uswap/plain"}
    assert set(table["rows"]["density"]["figures"]) == {"uswap", "naive"}
    assert all(1.2 < one["median"] < 8 for one in table["rows"]["density"]["figures"].values())
    runs = {run["peer"]: run for run in answer["runs"]}
    assert runs["uswap"]["about"]["peak_resident"] <= 4 * MIB + MIB
    assert sum(runs["uswap"]["about"]["faults"].values()) > 1000
    assert runs["naive"]["about"]["evicted"] > 3000
    goals = {one["key"]: one for one in answer["goals"]}
    assert set(goals) == {
        "loaded",
        "threads reads",
        "threads writes",
        "fits touch",
        "fits read",
        "fits random",
    }
    assert all(0.01 < one["ratio"]["median"] < 1000 for one in goals.values())
    assert answer["skipped"] == {}
    assert plot.read_text(encoding="utf-8").startswith("<?xml")


def test_block_sizes_and_data(tmp_path: Path) -> None:
    """Each block size is a column; data that are no numbers are not multiplied."""
    argv = ["bench", "peers", "--peers=uswap,plain", "--size=8MiB", "--rounds=2", "--over=2"]
    result = run_child(
        run_main,
        args=[*argv, "--seconds=0.01", "--block=4KiB,64KiB", "--data=text", "--work=matmul,sort"],
        timeout=120,
        env={"COLUMNS": "200"},
    )
    assert (
        "What is out stays in RAM: text, 8 MiB, of which 4 MiB may be resident (2x" in result.stdout
    )
    assert "uswap 4 KiB" in result.stdout
    assert "uswap 64 KiB" in result.stdout
    assert "sort in place" in result.stdout
    assert "matrix" not in result.stdout
    for block in ("4 KiB", "64 KiB"):
        assert f"data that fit, random reads: time uswap/plain     text, {block} " in result.stdout


TOUCH = """
import mmap, os, sys
memory = mmap.mmap(-1, 12 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
for at in range(0, len(memory), 4096):
    memory[at] = 1
os.write(1, b"done")
"""


def test_out_of_memory() -> None:
    """Version 1: a process that finds no room in its cgroup stands still, is let try again, and is not killed."""
    if (why := kernel.why_no_cgroup()) is not None:
        pytest.skip(why)
    with kernel.cgroup(4 * MIB) as group:
        if group.version != 1:
            pytest.skip("cgroups of version 2 kill")
        if swap := kernel.foreign_swap():
            pytest.skip(f"the machine swaps to {swap[0]}")
        process = subprocess.Popen(
            [sys.executable, "-c", TOUCH, group.procs], stdout=subprocess.PIPE
        )
        try:
            end = time.monotonic() + 60
            while group.resumed == 0 and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            assert process.poll() is None
            assert group.resumed > 0
            limits = group.path / "memory.limit_in_bytes"
            while process.poll() is None and time.monotonic() < end:
                limits.write_text(str(64 * MIB))  # until the cgroup lowers it again
                time.sleep(0.01)
            assert process.communicate(timeout=60)[0] == b"done"
            assert process.returncode == 0
        finally:
            process.kill()
            process.communicate()


def run_kernel_peers(directory: str) -> dict[str, Any]:
    """Measure them; what the machine was like before and after."""
    before = machine_state(directory)
    config = peers.Peers(
        work=("read", "rmw", "random", "zipf", "write", "loaded"),
        size=16 * MIB,
        disk_size=64 * MIB,
        rounds=1,
        seconds=0.02,
        directory=directory,
        fits=False,
    )
    result = peers.measure(config)
    return {"before": before, "after": machine_state(directory), "result": result.as_dict()}


@pytest.mark.usefixtures("kernel_peers")
def test_kernel_peers(tmp_path: Path) -> None:
    """The kernel's peers swap, or read from the file; afterwards the machine is as before."""
    found = run_child(run_kernel_peers, args=[str(tmp_path)], timeout=240).json
    assert found["before"] == found["after"]
    result = found["result"]
    assert result["skipped"] == {}
    runs = {(run["group"], run["peer"]): run for run in result["runs"]}
    assert set(runs) == {(group, peer) for group, names in peers.GROUPS.items() for peer in names}
    if (
        result["about"]["cgroup"] == "version 1"
    ):  # version 2 may kill a process each time it is tried
        assert result["killed"] == {}
    for group, peer in (("pooled", "zram"), ("disk", "zswap")):
        assert runs[group, peer]["work"]["read"]["major_faults"] > 100
        assert runs[group, peer]["work"]["random"]["major_faults"] > 0
        assert 1.2 < runs[group, peer]["density"] < 8
    assert runs["disk", "memmap"]["about"]["cached"] == 0
    assert runs["disk", "memmap"]["work"]["read"]["major_faults"] > 0
    assert 0 <= runs["disk", "zswap"]["out"] < 1
    goals = {one["key"] for one in result["goals"]}
    assert {"p50", "p99", "zipf", "read", "rmw", "density", "zswap read", "memmap zipf"} <= goals


def fail_in_the_middle(directory: str) -> dict[str, Any]:
    """A peer fails while swap is on: the state before, then, and after."""
    before = machine_state(directory)
    then = {}

    def fail(_spec: dict[str, Any], _limit: float) -> dict[str, Any]:
        then.update(machine_state(directory))
        raise peers.SubjectFailed("made to fail")

    runner.run_subject = fail
    answer: dict[str, Any] = {"before": before}
    for peer in ("zram", "zswap", "memmap"):
        config = peers.Peers(
            peers=[peer], rounds=1, disk_size=16 * MIB, directory=directory, fits=False
        )
        then.clear()
        try:
            peers.measure(config)
        except peers.SubjectFailed as exc:
            answer[peer] = {
                "error": str(exc),
                "then": dict(then),
                "after": machine_state(directory),
            }
    return answer


@pytest.mark.usefixtures("kernel_peers")
def test_undone_after_failure(tmp_path: Path) -> None:
    """When a peer fails, what was set up for it is undone."""
    found = run_child(fail_in_the_middle, args=[str(tmp_path)], timeout=120).json
    before = found["before"]
    for peer, group in (("zram", "pooled"), ("zswap", "disk"), ("memmap", "disk")):
        one = found[peer]
        assert f"{peer} ({group}, int64, 4x, round 1): made to fail" in one["error"]
        assert one["after"] == before
        assert len(one["then"]["cgroups"]) == len(before["cgroups"]) + 1
        assert len(one["then"]["swap"]) == (0 if peer == "memmap" else 1)
    assert found["zswap"]["then"]["zswap"]["enabled"] == "Y"
    assert found["zswap"]["then"]["zswap"]["max_pool_percent"] == "1"
    assert len(found["zram"]["then"]["zram"]) == len(before["zram"]) + 1


def members(cgroup: str) -> list[str]:
    """Return the processes in a cgroup; none in one that has just gone."""
    try:
        return Path(cgroup, "cgroup.procs").read_text().split()
    except OSError:  # ENODEV while it is being removed
        return []


@pytest.mark.usefixtures("kernel_peers")
@pytest.mark.parametrize(
    ("peer", "number", "status"), [("zram", signal.SIGTERM, 143), ("zswap", signal.SIGINT, None)]
)
def test_undone_after_signal(
    peer: str, number: signal.Signals, status: int | None, tmp_path: Path
) -> None:
    """SIGTERM and SIGINT in the middle of a run: all is undone, and the subject gone."""
    before = machine_state(str(tmp_path))
    command = [sys.executable, "-m", "uswap", "bench", "peers", f"--peers={peer}", "--seconds=5"]
    sizes = ["--size=64MiB", "--disk-size=64MiB", f"--dir={tmp_path}"]
    process = subprocess.Popen(
        [*command, *sizes],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            cgroups = machine_state(str(tmp_path))["cgroups"]
            if any(members(one) for one in cgroups):
                break
            time.sleep(0.05)
        else:
            pytest.fail("no subject moved into its cgroup")
        assert kernel.foreign_swap()
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode != 0
    assert status is None or process.returncode == status
    assert machine_state(str(tmp_path)) == before


def swap_is_on() -> dict[str, Any]:
    """Try to measure while the machine swaps; the state in between and the error."""
    with kernel.zram(16 * MIB) as device:
        try:
            peers.measure(peers.Peers(peers=["zram", "plain"], size=8 * MIB, rounds=1))
        except kernel.Unavailable as exc:
            return {"error": str(exc), "device": device.name}
    return {}


@pytest.mark.usefixtures("kernel_peers")
def test_refuses_foreign_swap() -> None:
    """Where the machine swaps already nothing is measured, and the message says what to do."""
    found = run_child(swap_is_on).json
    assert f"swaps to /dev/{found['device']} already" in found["error"]
    assert f"`swapoff /dev/{found['device']}` first" in found["error"]
    assert "--peers plain" in found["error"]


@pytest.mark.usefixtures("kernel_peers")
def test_what_the_kernel_lacks() -> None:
    """A compressor that zram has not, and a parameter's value that zswap refuses, are said; no trace is left."""
    before = machine_state("/sys")
    with pytest.raises(kernel.Unavailable, match=r"no nonsense here; it has .*lz"):  # noqa: SIM117
        with kernel.zram(16 * MIB, "nonsense"):
            pytest.fail("made")
    with kernel._Undo() as undo, pytest.raises(kernel.Unavailable, match="takes none of nonsense"):
        kernel._set_parameter(undo, "compressor", ("nonsense",))
    assert machine_state("/sys") == before


@pytest.mark.usefixtures("kernel_peers")
def test_no_zswap_before_zram() -> None:
    """What goes to zram passes no zswap, also where the machine has it on; then that is on again."""
    enabled = kernel.ZSWAP / "enabled"
    with kernel._Undo() as undo:
        kernel._set_parameter(undo, "enabled", ("Y",))
        with kernel.zram(16 * MIB):
            assert enabled.read_text().strip() == "N"
        assert enabled.read_text().strip() == "Y"


def measure_unprivileged() -> dict[str, str]:
    """What is left out."""
    return runner._skipped(peers.Peers())


def test_without_root() -> None:
    """Without root the kernel's peers are left out, each with a word."""
    user = "nobody"
    if why := can_run_as(user):
        pytest.skip(why)
    found = run_child(measure_unprivileged, user=user).json
    assert set(found) == {"zram", "zswap", "memmap"}
    assert all("needs root" in why for why in found.values())


def test_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out for lack of a cgroup, of zram or of NumPy."""
    monkeypatch.setattr(kernel, "foreign_swap", list)
    monkeypatch.setattr(kernel, "why_no_cgroup", lambda: None)
    monkeypatch.setattr(kernel, "why_no_zram", lambda: "no zram")
    monkeypatch.setattr(kernel, "why_no_zswap", lambda: None)
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    found = runner._skipped(peers.Peers())
    assert found["zram"] == "no zram"
    assert found["matmul"] == found["sort"]
    assert "pip install 'uswap[numpy]'" in found["sort"]
    assert "zswap" not in found
    cases = peers.cases_of(peers.Peers(), "pooled", "int64", 4, found)
    assert [case.name for case in cases] == ["uswap", "naive", "plain"]


def test_raised_again(tmp_path: Path) -> None:
    """A cgroup that is raised already gets still more, as a limit that is no higher wakes nobody."""
    limits = tmp_path / "memory.limit_in_bytes"
    limits.write_text("")
    counted = kernel._Counted(tmp_path, 1, 4 * MIB)
    before = 4 * MIB
    for _ in range(3):
        counted._raise()
        assert before < int(limits.read_text()) < 6 * MIB
        before = int(limits.read_text())


def test_cgroup_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under version 2 the memory controller is switched on if need be, and off again; the limit is memory.max."""
    monkeypatch.setattr(kernel, "CGROUPS", tmp_path)
    monkeypatch.setattr(kernel, "COUNT", 600.0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "rmdir", lambda self: shutil.rmtree(self))
    controllers, control = tmp_path / "cgroup.controllers", tmp_path / "cgroup.subtree_control"
    controllers.write_text("cpu io\n")
    control.write_text("cpu\n")
    assert kernel.why_no_cgroup() == f"no memory cgroup: {controllers} lacks memory"
    controllers.write_text("cpu io memory\n")
    with kernel.cgroup(64 * MIB) as made:
        assert made.version == 2
        assert control.read_text() == "+memory"
        assert (made.path / "memory.max").read_text() == str(64 * MIB)
        assert made.procs == str(made.path / "cgroup.procs")
    assert control.read_text() == "-memory"
    assert not made.path.exists()
    controllers.unlink()
    assert "neither version 1 nor 2 is mounted" in str(kernel.why_no_cgroup())


def test_undo_goes_on() -> None:
    """When one undoing fails the others are still done, last first, and the failure is told."""
    done = []

    def fail() -> None:
        done.append("b")
        raise OSError("could not")

    with pytest.raises(OSError, match="could not"), kernel._Undo() as undo:  # noqa: PT012
        undo.step(lambda: None, lambda: done.append("a"))
        undo.step(lambda: None, fail)
        undo.step(lambda: None, lambda: done.append("c"))
    assert done == ["c", "b", "a"]


def memory_spec(**more: Any) -> dict[str, Any]:
    """A subject on plain memory."""
    fd = os.memfd_create("data")
    os.write(fd, common.DATA["int64"](MIB))
    return {
        "memory": "anonymous",
        "parent": os.getpid(),
        "round": 0,
        "chunk": (fd, MIB),
        "data": "int64",
        "size": 4 * MIB,
        "limit": MIB,
        "work": ["read"],
        "seconds": 0.01,
        "filled": False,
        **more,
    }


def test_subject() -> None:
    """A subject says what it has measured."""
    found = peers.run_subject(memory_spec(), 60)
    assert set(found["work"]) == {"fill", "read"}
    assert found["density"] is None
    assert found["work"]["read"]["count"] % 1024 == 0


def test_subject_fails() -> None:
    """An error in a subject comes with its last words, and what takes too long is killed."""
    with pytest.raises(peers.SubjectFailed, match=r"exit status 1: [\s\S]*KeyError: 'nothing'"):
        peers.run_subject(memory_spec(memory="nothing"), 60)
    started = time.monotonic()
    with pytest.raises(peers.SubjectFailed, match="killed after 1 s"):
        peers.run_subject(memory_spec(seconds=600), 1)
    assert time.monotonic() - started < 30


def test_wrong_bytes(tmp_path: Path) -> None:
    """A page that holds something else than it should ends a subject; nothing of it is reported."""
    file = tmp_path / "other"
    file.write_bytes(common.DATA["text"](4 * MIB))
    with pytest.raises(peers.SubjectFailed, match="WrongBytes: 1024 of 1024 pages"):
        peers.run_subject(memory_spec(memory="mapped", file=str(file), filled=True), 60)


def killed(_spec: dict[str, Any], _limit: float) -> dict[str, Any]:
    """As if the kernel had ended it."""
    work = {"fill": {"count": 1, "bytes": 8 * MIB, "ns": 10**7, "major_faults": 0}}
    raise peers.SubjectFailed("exit status -9: ", {"work": work, "density": 2.0}, signal.SIGKILL)


def test_killed_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again; what a peer had measured stays, what is missing is told; for uswap it is a failure."""
    tries = []

    def killed_at_first(spec: dict[str, Any], limit: float) -> dict[str, Any]:
        tries.append(spec)
        if len(tries) < peers.TRIES:
            return killed(spec, limit)
        return {"work": {}, "density": 3.0}

    monkeypatch.setattr(runner, "run_subject", killed_at_first)
    config = peers.Peers(size=8 * MIB, rounds=1)
    result = peers.Result(config, MACHINE)
    zram, uswap = (
        peers.Case(config, "pooled", "int64", 4, name, name, peers.Column(name), 0)
        for name in ("zram", "uswap")
    )
    monkeypatch.setattr(kernel, "zram", lambda size: nullcontext(kernel.Zram("zram9", "lz4")))
    made = kernel.Cgroup(1, Path("/sys/fs/cgroup/memory/none"))
    monkeypatch.setattr(kernel, "cgroup", lambda limit: nullcontext(made))
    runner._run(result, zram, 0, (0, 0))
    assert result.killed == {}
    assert result.runs.pop().density == 3.0
    assert len({id(spec) for spec in tries}) == peers.TRIES  # each set up anew
    monkeypatch.setattr(runner, "run_subject", killed)
    runner._run(result, zram, 0, (0, 0))
    assert result.runs[0].density == 2.0
    (missing,) = result.killed.values()
    assert missing.startswith("read, rmw, strided")
    monkeypatch.setenv("COLUMNS", "400")
    assert "ended by the kernel, out of memory, before it had measured read" in reporter.peers(
        result
    )
    with pytest.raises(peers.SubjectFailed, match=r"uswap \(pooled, int64, 4x, round 1\)"):
        runner._run(result, uswap, 0, (0, 0))


# ---- arguments


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--peers", "zram,ksm"], "'ksm'; accepted: uswap, zram, naive"),
        (["--work", "read,dance"], "'dance'; accepted: read, rmw"),
        (["--data", "noise"], "'noise'; accepted: int64, walk"),
        (["--over", "1"], "'1'; accepted: an integer from 2 to 1024"),
        (["--over", "4,x"], "'x'; accepted: an integer from 2 to 1024"),
        (["--size", "1MiB"], "too small"),
        (["--disk-size", "5MB"], "not a multiple of 1 MiB"),
        (["--rounds", "0"], "'0'; accepted: an integer from 1 to 1000"),
        (["--seconds", "0"], "'0'; accepted: a number from 0.01 to 60"),
        (["--dir", "/nowhere"], "'/nowhere' does not exist; accepted: a directory"),
        (["--block", "4KiB,5000"], "not a power of two"),
        (["--faults", "inline,kernel"], "'kernel'; accepted: message, inline, auto, default"),
    ],
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad argument is a usage error that names it and says what is accepted."""
    with pytest.raises(SystemExit) as end:
        main(["bench", "peers", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_too_little_is_resident(capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes of which too little would be resident are refused."""
    assert main(["bench", "peers", "--size=16MiB", "--over=4,16", "--peers=uswap"]) == 2
    assert "--size 16 MiB is too small for --over 16: of it 1 MiB" in capsys.readouterr().err


@pytest.mark.parametrize("name", programs.NUMPY)
def test_program(name: str) -> None:
    """Each does what it says, on any memory, and finds a word that is another."""
    np = pytest.importorskip("numpy")
    chunk = random.Random(1).randbytes(64 << 10)
    memory = bytearray(chunk * 16)
    one = programs.Programs(np, len(memory), chunk, 0)
    one.attach(memoryview(memory))
    before = one.source.copy()
    count, size, ns = one.run(name, 60)
    assert (count, size) == {
        "gather": (1024, 1 << 19),
        "scatter": (1024, 1 << 19),
        "columns": (256, 1 << 19),
        "transpose": (256, 1 << 19),
        "argsort": (1024, 1 << 19),
        "exchange": (512, 1 << 19),
    }[name]
    assert ns > 0
    rows = before.reshape(1024, 64)
    want = {
        "gather": lambda: rows[one.order].ravel(),
        "scatter": lambda: rows[np.argsort(one.order)].ravel(),
        "transpose": lambda: before.reshape(256, 256).T.ravel(),
    }
    if name in want:
        assert (one.target == want[name]()).all()
    if name == "exchange":
        assert sorted(map(bytes, one.source.reshape(1024, 64))) == sorted(map(bytes, rows))
        assert (one.source != before).any()
    one.source[:] = before ^ np.uint64(1)
    with pytest.raises(subject.WrongBytes):
        one.run(name, 60)


def run_programs() -> list[str]:
    """Run all of NumPy's; the modules that were imported meanwhile."""
    import numpy as np

    chunk = random.Random(1).randbytes(64 << 10)
    memory = bytearray(chunk * 16)
    one = programs.Programs(np, len(memory), chunk, 0)
    one.attach(memoryview(memory))
    before = set(sys.modules)
    for name in programs.NUMPY:
        one.run(name, 60)
    return sorted(set(sys.modules) - before)


def test_programs_import_nothing() -> None:
    """What a program needs is imported before it is measured, and before its cgroup has a limit."""
    pytest.importorskip("numpy")
    assert run_child(run_programs).json == []


def test_names() -> None:
    """The command offers what the benchmark knows."""
    assert tuple(peers.PEERS) == bench_peers.PEERS
    assert set(bench_peers.WORKS) | {"fill"} | set(bench_peers.PROGRAMS) == set(subject.WORKS)
    assert bench_peers.PROGRAMS == programs.PROGRAMS
    assert set(peers.Peers().work) == set(bench_peers.WORKS) | {"fill"}
    assert tuple(common.DATA) == bench_peers.DATA
    assert set(subject.WORKS) == {row.work for row in peers.ROWS.values()}
    assert set(plot_peers.SHORT) == {
        goal.key for goal in peers.GOALS if goal.by[0] == "uswap"
    } | set(peers.PROGRAM_GOALS) | {f"fits {work}" for work in subject.FITS}


def test_groups() -> None:
    """A group is measured when one of its own peers is wanted."""
    assert set(peers.Peers().groups()) == {"pooled", "disk"}
    assert peers.Peers(peers=["uswap", "zswap"]).groups() == {"disk": ["uswap", "zswap"]}
    assert peers.Peers(peers=["plain", "uswap"]).groups() == {"pooled": ["uswap", "plain"]}
