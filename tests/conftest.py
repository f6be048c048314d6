# SPDX-License-Identifier: MIT
"""What holds for the whole run of the tests: they leave nothing behind."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import uswap

from child import CGROUP_PREFIX, GRACE, SESSION, processes_with

# Not beside what is under version control, nor in the directory of a child, which must stay empty.
os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", str(Path(__file__).parents[1] / "build" / "hypothesis")
)


def pytest_report_header() -> str:
    """Say which uswap is tested."""
    return f"uswap: {Path(uswap.__file__).parent}"


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to test the source tree where the built wheel is meant."""
    tree = config.rootpath / "uswap"
    if os.environ.get("USWAP_TEST_INSTALLED") == "1" and Path(uswap.__file__).parent == tree:
        raise pytest.UsageError("`import uswap` gave the source tree, not the installed wheel")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module's tests run once for each of its FAULTS_BY: by whom the faults of its pagers are resolved."""
    if hows := getattr(metafunc.module, "FAULTS_BY", ()):
        metafunc.parametrize("faults_by", hows, indirect=True)


@pytest.fixture(autouse=True)
def faults_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The option `faults` of all pagers of a test; "": as it is without."""
    how = str(getattr(request, "param", ""))
    if how:
        monkeypatch.setenv("USWAP_FAULTS", how)
    return how


def _cgroups() -> set[str]:
    top = "/sys/fs/cgroup"
    return {
        os.path.join(path, name)
        for path, names, _ in os.walk(top)
        for name in names
        if name.startswith(CGROUP_PREFIX)
    }


def _files() -> set[str]:
    places = {tempfile.gettempdir(), "/dev/shm"}
    found = {str(path) for place in places for path in Path(place).glob("*uswap*")}
    # Another run's children have their directories, and remove them.
    return {path for path in found if "uswap-child-" not in path}


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail the run if a process, a file or a cgroup of the tests outlives them."""
    marker = uuid.uuid4().hex
    os.environ[SESSION] = marker
    before = _cgroups() | _files()
    yield
    end = time.monotonic() + GRACE
    while (left := processes_with(SESSION, marker)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left, f"processes left behind: {left}"
    new = sorted((_cgroups() | _files()) - before)
    assert not new, f"left behind: {new}"
