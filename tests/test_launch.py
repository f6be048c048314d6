# SPDX-License-Identifier: MIT
"""The pager process takes nothing from the user's program but the package and what it depends on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from child import run_child

JOB = """
import os, sys
import uswap
with uswap.Pager(limit="2MiB", pool="8MiB") as pager:
    data = os.urandom(4 << 20)
    region = pager.region(len(data))
    view = memoryview(region)
    view[:] = data
    region.evict()
    for number in os.listdir("/proc/self/fd"):
        target = os.readlink(f"/proc/self/fd/{number}") if os.path.exists(f"/proc/self/fd/{number}") else ""
        assert int(number) > 2 or not any(word in target for word in ("uswap", "userfaultfd", "eventfd", "socket")), target
    print(view == data)
    view.release()
"""


def job(code: str, before: str, close: list[int], variables: dict[str, str]) -> None:
    """What the children run: a program of its own, as a user would start it."""
    script = Path("job.py")
    script.write_text(before + code)
    done = subprocess.run(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE if 1 not in close else subprocess.DEVNULL,
        stderr=subprocess.PIPE if 2 not in close else None,
        env={**os.environ, **variables},
        preexec_fn=lambda: [os.close(fd) for fd in close] and None,
        timeout=50,
        check=False,
        text=True,
    )
    for path in Path().iterdir():
        if path.suffix == ".py":
            path.unlink()
        elif path.name == "__pycache__":
            for one in path.iterdir():
                one.unlink()
            path.rmdir()
    assert done.returncode == 0, done
    if 1 not in close:
        assert done.stdout == "True\n", done
    assert not done.stderr or "uvloop" not in done.stderr, done


@pytest.mark.parametrize("name", ["queue", "logging", "ssl", "heapq", "socket2", "json2"])
def test_own_module(name: str) -> None:
    """A module beside the script that is named like one of the library's is not the pager's."""
    before = f"open({name + '.py'!r}, 'w').write('class Task: pass\\n')\n"
    run_child(job, args=[JOB, before, [], {}])


@pytest.mark.parametrize(
    "before",
    [
        "import pathlib, sys\nsys.path.append(pathlib.Path('/tmp'))\n",
        "import sys\nsys.path.extend(f'/nowhere/{k:0200}' for k in range(2000))\n",
        "import sys\nsys.executable = ''\n",
        "import sys\nsys.executable = None\n",
    ],
    ids=["a Path", "2000 long entries", "empty", "None"],
)
def test_interpreter(before: str) -> None:
    """Odd entries of sys.path and an embedded interpreter, which does not know its executable."""
    run_child(job, args=[JOB, before, [], {}])


@pytest.mark.parametrize(
    "name", ["PYTHONWARNINGS", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONDEVMODE"]
)
def test_environment(name: str) -> None:
    """PYTHON variables are for the user's program, not for the pager process."""
    value = {"PYTHONWARNINGS": "error", "PYTHONPATH": "/nowhere"}.get(name, "1")
    run_child(job, args=[JOB, "", [], {name: value}])


@pytest.mark.parametrize("close", [[0], [1], [2], [0, 1, 2]])
def test_descriptors(close: list[int]) -> None:
    """A program that starts with descriptors 0 to 2 closed gets none of ours there."""
    run_child(job, args=[JOB, "", close, {}])


def twice(path: str) -> None:
    """What the child of test_swap_file_twice runs."""
    import uswap

    def make() -> uswap.Pager:
        return uswap.Pager(limit="2MiB", pool="8MiB", swapfile=path, swap="16MiB", overwrite=True)

    first = make()
    try:
        make()
    except OSError as e:
        assert "in use" in str(e), e
    else:
        raise AssertionError("the second was let in")
    first.close()
    make().close()
    os.unlink(path)


def test_swap_file_twice(tmp_path: Path) -> None:
    """Two pagers can't use one swap file."""
    run_child(twice, args=[str(tmp_path / "swap")])


def too_large() -> None:
    """What the child of test_too_large runs."""
    import uswap

    with uswap.Pager(limit="2MiB", pool="8MiB") as pager:
        for size in ("200TiB", 1 << 63, 1 << 70):
            try:
                pager.region(size)
            except MemoryError as e:
                assert "address space" in str(e)
            else:
                raise AssertionError(size)


def test_too_large() -> None:
    """More address space than there is is a MemoryError that says so."""
    run_child(too_large)


@pytest.mark.parametrize("call", ["pidfd_open", "memfd_create"])
def test_refused(call: str) -> None:
    """A filter that refuses a system call is named, with the command that says more."""
    run_child(refused, args=[call])


def refused(call: str) -> None:
    """What the children of test_refused run."""
    import errno

    import uswap

    import seccomp

    seccomp.forbid(call, errno.EPERM)
    try:
        uswap.Pager(limit="2MiB", pool="8MiB")
    except uswap.UswapError as e:
        assert call in str(e), e
        assert "uswap doctor" in str(e), e
    else:
        raise AssertionError(call)
