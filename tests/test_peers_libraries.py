# SPDX-License-Identifier: MIT
"""`uswap bench peers --work programs`: the programs of other libraries than NumPy, as many as are installed."""

from __future__ import annotations

import importlib.util
import json
import mmap
import random
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from uswap.bench import common, libraries, peers, programs, subject
from uswap.bench.peers import runner
from uswap.commands import bench_peers, main

from child import run_child

MIB = 1 << 20
NAMES = tuple(programs.LIBRARIES)
SIZE = 64 * MIB  # so that malloc() would map the largest copies


def is_there(name: str) -> bool:
    """Whether all that a program imports is installed."""
    wanted = {module.partition(".")[0] for module in programs.LIBRARIES[name]} | {"numpy"}
    return all(importlib.util.find_spec(one) is not None for one in wanted)


# ---- what is there


def test_registry() -> None:
    """Each program has what runs it and a row; the command offers it; the mean is over all of them."""
    assert bench_peers.NUMPY == programs.NUMPY
    assert bench_peers.LIBRARIES == NAMES
    assert (*programs.NUMPY, *NAMES) == programs.PROGRAMS
    places = [subject.WORKS.index(name) for name in (*programs.PROGRAMS, "sort")]
    assert places == sorted(places)
    for name in NAMES:
        assert name in peers.ROWS
        assert callable(getattr(libraries.Libraries, f"_{name.replace('-', '_')}"))


def test_groups() -> None:
    """From a disk only what can be cut short is run."""
    assert set(NAMES) <= set(peers.GROUP_WORK["pooled"])
    assert set(NAMES) & set(peers.GROUP_WORK["disk"]) == {"numba-histogram", "numba-columns"}


# ---- what is not there


def test_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is missing, can't be imported, or ends the process is said, and costs only its own programs."""
    pytest.importorskip("numpy")
    for name in ("pandas", "sklearn", "numba", "pyarrow", "polars"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # type: ignore[arg-type]
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs an older NumPy')\n")
    (tmp_path / "polars.py").write_text("import os; os.kill(os.getpid(), 4)\n")
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow" / "__init__.py").write_text("")
    (tmp_path / "pyarrow" / "compute.py").write_text("raise RuntimeError('broken')\n")
    (tmp_path / "pandas.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = peers.Peers(peers=["uswap", "plain"], work=["read", *programs.PROGRAMS])
    found = runner._skipped(config)
    assert found.pop("polars-sort").endswith("can't be imported: exit status -4")
    assert found == {
        "sklearn-split": "needs scikit-learn: pip install 'uswap[bench]'",
        "sklearn-forest": "needs scikit-learn: pip install 'uswap[bench]'",
        "arrow-sort": "pyarrow.compute can't be imported: RuntimeError: broken",
        "numba-histogram": "numba can't be imported: ImportError: Numba needs an older NumPy",
        "numba-columns": "numba can't be imported: ImportError: Numba needs an older NumPy",
    }
    assert runner._skipped(peers.Peers(peers=["uswap", "plain"])) == {}


def without_libraries(*argv: str) -> int:
    """Run a command where none of the libraries can be imported."""
    for modules in programs.LIBRARIES.values():
        for module in modules:
            sys.modules[module.partition(".")[0]] = None  # type: ignore[assignment]
    sys.exit(main(list(argv)))


def test_command_without_libraries() -> None:
    """Each of their programs is left out with a line; the others are measured, and the status is 0."""
    pytest.importorskip("numpy")
    argv = ["bench", "peers", "--peers=uswap,plain", "--size=8MiB", "--rounds=1"]
    result = run_child(
        without_libraries,
        args=[*argv, "--seconds=0.01", "--work=programs"],
        timeout=120,
        env={"COLUMNS": "200"},
    )
    lines = result.stdout.splitlines()
    packages = {"sklearn": "scikit-learn", "arrow": "pyarrow", "polars": "polars"}
    for name in NAMES:
        package = packages.get(name.split("-")[0], name.split("-")[0])
        (line,) = (one for one in lines if one.startswith(f"{name} left out: "))
        assert f"needs {package}: pip install 'uswap[bench]'" in line
        assert not any(one.startswith(peers.ROWS[name].label) for one in lines)
    for name in programs.NUMPY:
        assert any(one.startswith(peers.ROWS[name].label) for one in lines)


# ---- what they do


def wanted(np: Any, one: libraries.Libraries, name: str, rows: Any) -> list[Any] | None:
    """What NumPy finds in their place; None: nothing of NumPy's is that."""
    keys = rows.view(np.int64)
    if name == "pandas-sort":
        return [keys[np.argsort(keys[:, 0], kind="stable")]]
    if name == "polars-sort":
        columns = keys.reshape(libraries.COLUMNS, -1)
        order = np.argsort(columns[0], kind="stable")
        return [column[order] for column in columns]
    if name == "arrow-sort":
        return [np.argsort(rows.view("S512").ravel(), kind="stable").astype(np.uint64)]
    return None


def run_library(name: str) -> dict[str, Any]:
    """Run one on memory that it was not made with: its result, and what it costs in memory."""
    import numpy as np

    chunk = common.DATA["int64"](MIB)
    one = libraries.Libraries(np, [name], SIZE, chunk, "int64", 0)
    found: dict[str, Any] = {}
    data = one.data_of(name)
    with mmap.mmap(-1, SIZE) as memory, memoryview(memory) as view:
        view[:] = (data * -(-SIZE // len(data)))[:SIZE]
        modules = set(sys.modules)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        found["run"] = one.run(name, view, 60)
        found["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        found["imported"] = sorted(set(sys.modules) - modules)
        found["cut"] = one.run(name, view, 0)[0] if name.startswith("numba-") else None
        rows = np.frombuffer(view, np.uint64).reshape(-1, programs.ROW // programs.WORD)
        if (want := wanted(np, one, name, rows)) is not None:
            found["wanted"] = one._hash(want) == one.expected[name]
        if name == "sklearn-split":
            parts = one._sklearn_split(rows)
            both = np.concatenate(parts)
            found["wanted"] = [len(part) for part in parts] == [98304, 32768] and sorted(
                map(bytes, both)
            ) == sorted(map(bytes, rows))
        del rows
        view[:] = common.DATA["float32"](MIB) * (SIZE // MIB)
        try:
            one.run(name, view, 60)
        except common.WrongBytes as exc:
            found["wrong"] = str(exc)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_library(name: str) -> None:
    """Each does what it says, finds it when the memory holds something else, and allocates nothing when measured."""
    if not is_there(name):
        pytest.skip(f"{name} needs {', '.join(programs.LIBRARIES[name])}")
    found = run_child(run_library, args=[name], timeout=120).json
    count, size, ns = found["run"]
    assert (count, size) == ((64 if name == "numba-columns" else SIZE // 512), SIZE)
    assert ns > 0
    assert found["faults"] < 200  # what Arrow allocates, the least of all, has 256 pages
    assert found["imported"] == []
    assert found.get("wanted", True)
    assert found["cut"] in (None, 0)
    assert "written" in found["wrong"] or "ordinary memory" in found["wrong"]


def addresses() -> dict[str, list[int]]:
    """Where the inputs of libraries lie, and where the memory does."""
    import numpy as np

    one = libraries.Libraries(
        np, ["pandas-sort", "polars-sort"], MIB, random.Random(1).randbytes(MIB), "uint8", 0
    )
    memory = bytearray(MIB)
    rows = np.frombuffer(memory, np.uint64).reshape(-1, 64)
    frame = one._pandas_frame(rows)
    columns = one._polars_frame(rows).get_columns()
    arrow = one.modules["pyarrow"]
    array = one._arrow_array(arrow.binary(512), rows)
    width = MIB // libraries.COLUMNS
    return {
        "memory": [rows.ctypes.data] * 3
        + [rows.ctypes.data + at * width for at in range(len(columns))],
        "inputs": [
            rows.ctypes.data,
            frame.to_numpy(copy=False).ctypes.data,
            array.buffers()[1].address,
            *(column.to_arrow().buffers()[1].address for column in columns),
        ],
    }


def test_no_copies() -> None:
    """A frame and an array are the memory itself, not copies of it."""
    if not (is_there("pandas-sort") and is_there("polars-sort")):
        pytest.skip("needs pandas, polars and pyarrow")
    found = run_child(addresses, timeout=120).json
    assert found["inputs"] == found["memory"]


def run_main(*argv: str) -> int:
    """Run a command; in a child, since it touches paged memory."""
    sys.exit(main(list(argv)))


@pytest.mark.parametrize("data", ["walk", "text"])
def test_paged(data: str) -> None:
    """All that are installed run on a region a quarter of which is resident, then the sort; nothing is lost."""
    pytest.importorskip("numpy")
    argv = ["bench", "peers", "--peers=uswap", "--size=8MiB", "--rounds=1"]
    work = f"--work={','.join(NAMES)},sort"
    result = run_child(
        run_main,
        args=[*argv, "--seconds=0.02", f"--data={data}", work, "--json"],
        timeout=240,
    )
    answer = json.loads(result.stdout)
    (table,) = answer["table"]
    there = {name for name in NAMES if is_there(name)}
    assert set(answer["skipped"]) == set(NAMES) - there
    assert table["rows"].keys() - {"fill", "density"} == there | {"sort"}
    for name in there:
        assert set(table["rows"][name]["figures"]) == {"uswap"}
