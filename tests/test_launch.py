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
    # Nor has the pager process one of its own there, nor what the program opened where its stderr would be.
    low = [os.readlink(f"/proc/{pager.pid}/fd/{number}") for number in range(3)]
    assert low[:2] == ["/dev/null"] * 2, low
    if sys.__stderr__ is None:
        assert low[2] == "/dev/null", low
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


@pytest.mark.parametrize("name", ["queue", "logging", "ssl", "heapq", "uvloop", "lz4"])
def test_own_module(name: str) -> None:
    """A module beside the script that is named like one that the pager needs is not the pager's."""
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


def taken_over(what: str) -> dict[str, object]:
    """What the children of test_start_up_files run: which of the user's start-up code the pager process runs."""
    import subprocess

    import uswap

    here = Path.cwd()
    (here / "sitecustomize.py").write_text(
        f"open('{here}/ran-' + str(__import__('os').getpid()), 'w')"
    )
    os.environ["PYTHONPATH"] = str(here)
    assert subprocess.run([sys.executable, "-c", ""], check=True).returncode == 0
    ran = list(here.glob("ran-*"))
    with uswap.Pager(limit="2MiB", pool="1MiB") as pager:
        found = {
            "by python": len(ran),
            "by the pager": (here / f"ran-{pager.pid}").exists(),
            "cwd": os.readlink(f"/proc/{pager.pid}/cwd"),
        }
    for path in [*ran, here / "sitecustomize.py", *here.glob("__pycache__/*")]:
        path.unlink()
    if (here / "__pycache__").exists():
        (here / "__pycache__").rmdir()
    return found


def test_start_up_files() -> None:
    """A sitecustomize of the user's, which any Python of his runs, is not run by the pager process."""
    found = run_child(taken_over, args=[""]).json
    assert found == {"by python": 1, "by the pager": False, "cwd": "/"}


def embedded(how: str) -> str:
    """What the children of test_embedded run: the message of the error, or nothing."""
    import shutil
    import sysconfig

    import uswap

    host = Path.cwd() / "host"
    shutil.copy("/bin/true", host)
    python = sys.executable
    options = {}
    if how == "another program":  # as uWSGI does
        sys.executable = str(host)
    elif how == "frozen":
        sys.frozen = True  # type: ignore[attr-defined]
    else:
        sys.executable = sys._base_executable = ""  # type: ignore[attr-defined]
        sysconfig.get_config_vars()["BINDIR"] = "/nowhere"
        sys.base_exec_prefix = "/nowhere"
        os.environ["PATH"] = "/nowhere"
    if how in ("named", "named wrongly", "named another"):
        options["python"] = {"named": python, "named another": str(host)}.get(
            how, "/nowhere/python"
        )
    try:
        with uswap.Pager(limit="2MiB", pool="1MiB", **options) as pager:
            region = pager.region(1 << 20)
            region.evict()
            return ""
    except uswap.PagerStartError as e:
        return str(e)
    finally:
        host.unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("another program", []),
        ("frozen", []),
        ("named", []),
        ("none", ["sys.executable is ''", "python= or USWAP_PYTHON"]),
        ("named wrongly", ["python='/nowhere/python' can't be run", "the path of a python3."]),
        ("named another", ["is gone (exit status 0)", "/host'", "USWAP_PYTHON"]),
    ],
)
def test_embedded(how: str, says: list[str]) -> None:
    """Where sys.executable is no interpreter one is found, or named by an option, or the error says what to set."""
    message = run_child(embedded, args=[how]).json
    assert bool(message) == bool(says)
    for words in says:
        assert words in message


def another_version(python: str) -> str:
    """What the child of test_another_version runs."""
    import uswap

    with pytest.raises(uswap.PagerStartError) as e:
        uswap.Pager(limit="2MiB", pool="1MiB", python=python)
    return str(e.value)


def test_another_version(tmp_path: Path) -> None:
    """An interpreter of another version is refused by its words, and not by what it then can't import."""
    ours = sys.version_info[:2]
    for folder in [
        *os.environ["PATH"].split(os.pathsep),
        *Path.home().glob(".pyenv/versions/*/bin"),
    ]:
        for minor in range(9, 15):
            path = os.path.join(folder, f"python3.{minor}")
            if (3, minor) != ours and os.access(path, os.X_OK) and _is_python(path, minor):
                message = run_child(another_version, args=[path]).json
                assert f"it is Python 3.{minor}, and the program's is 3.{ours[1]}" in message
                return
    pytest.skip("there is no other Python")


def _is_python(path: str, minor: int) -> bool:
    done = subprocess.run(
        [path, "-c", "import sys; print(sys.version_info[1])"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() == str(minor)


def broken() -> str:
    """What the child of test_broken_package runs."""
    import uswap
    from uswap import launch

    found = launch._folders

    def other() -> dict[str, str]:
        return found() | {"uvloop": "/nowhere"}

    launch._folders = other
    with pytest.raises(uswap.PagerStartError) as e:
        uswap.Pager(limit="2MiB", pool="1MiB")
    return str(e.value)


def test_broken_package() -> None:
    """What the pager process can't import is named by the exception, not only on stderr."""
    assert "can't run it: ModuleNotFoundError: No module named 'uvloop'" in run_child(broken).json


def missing() -> str:
    """What the child of test_missing_package runs."""
    import uswap
    import uswap.client

    sys.path[:] = [one for one in sys.path if "site-packages" not in one]
    with pytest.raises(uswap.PagerStartError) as e:
        uswap.Pager(limit="2MiB", pool="1MiB", codec="none")
    return str(e.value)


def test_missing_package() -> None:
    """A dependency that is not installed is named."""
    assert "needs uvloop, which can't be found" in run_child(missing).json


@pytest.mark.parametrize("close", [[0], [1], [2], [0, 1, 2]])
def test_descriptors(close: list[int]) -> None:
    """A program that starts with descriptors 0 to 2 closed gets none of ours there."""
    run_child(job, args=[JOB, "", close, {}])


@pytest.mark.parametrize("close", [[2], [0, 1, 2]])
def test_file_in_place_of_stderr(close: list[int]) -> None:
    """What such a program has opened since, which got descriptor 2, is not the pager's stderr."""
    before = "import os\nwhile os.dup(os.open('/dev/zero', os.O_RDWR)) < 3: pass\nos.set_inheritable(2, True)\n"
    run_child(job, args=[JOB, before, close, {}])


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
