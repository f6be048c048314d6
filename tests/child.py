# SPDX-License-Identifier: MIT
"""Runs code in a child process, under a time limit that always holds.

A fault that nobody serves is a hang in the kernel, and a time limit inside the same interpreter
cannot fire while the faulting thread holds the GIL. So whatever touches paged memory runs in a
child, and the limit is kept from outside:

1. at the limit, SIGABRT goes to every process of the run: Python's faulthandler, which needs no
   GIL, writes the stacks of all threads to stderr;
2. then SIGKILL.

The processes of a run are known by a variable in their environment (``USWAP_TEST_ID``), because a
pager is in a session of its own, and may outlive its parent. Nothing else is ever signalled. After
the run the same variable tells whether anything was left behind, which fails the test.

This file is also what the child runs: ``python child.py spec.json``.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "CGROUP_PREFIX",
    "ChildFailed",
    "ChildResult",
    "LeftBehind",
    "can_run_as",
    "processes_with",
    "run_child",
]

ID = "USWAP_TEST_ID"  # one run of a child
SESSION = "USWAP_TEST_SESSION"  # one run of pytest, see conftest.py
CGROUP_PREFIX = "uswap-test-"  # a test that makes a cgroup names it so; conftest.py looks for them

GRACE = 10.0  # seconds for a pager to be gone after its client
STACKS = 3.0  # seconds for stacks to be written after SIGABRT
SHOWN = 20_000  # characters of output shown when a child fails


@dataclass(frozen=True)
class ChildResult:
    """How a child ended. ``returncode`` is negative for a signal, as in subprocess."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False

    def __str__(self) -> str:
        end = "timed out" if self.timed_out else f"exit status {self.returncode}"
        return (
            f"child: {end} after {self.seconds:.1f} s\n"
            f"--- stdout\n{_shorten(self.stdout)}\n--- stderr\n{_shorten(self.stderr)}"
        )

    @property
    def json(self) -> Any:
        """The last line of stdout, which is JSON: what a child that is a function returned."""
        return json.loads(self.stdout.splitlines()[-1])


class ChildFailed(AssertionError):
    """The child timed out, or ended with another status than 0."""

    def __init__(self, result: ChildResult) -> None:
        super().__init__(str(result))
        self.result = result


class LeftBehind(AssertionError):
    """A process or a file outlived the child."""


def run_child(
    code: str | Callable[..., object],
    *,
    timeout: float = 60,
    args: Sequence[Any] = (),
    env: Mapping[str, str | None] | None = None,
    user: str | int | None = None,
    check: bool = True,
    python: Sequence[str] = (),
    grace: float = GRACE,
) -> ChildResult:
    """Run Python code in a child process and return how it ended.

    Args:
        code: source text, or a function at the top level of a test module. A function's result, if
            it is not None, is printed as a line of JSON (``ChildResult.json``).
        timeout: seconds.
        args: ``sys.argv[1:]`` of source text; the function's arguments (whatever JSON can carry).
        env: changes to the environment; None removes a variable.
        user: run as this user; needs root, see :func:`can_run_as`.
        check: raise :class:`ChildFailed` unless the child ended with 0. With ``check=False`` a
            time-out is reported in the result only.
        python: arguments for the interpreter, such as ``["-X", "dev"]``.
        grace: seconds for other processes of the run to be gone after the child.

    Raises:
        ChildFailed: see ``check``.
        LeftBehind: a process outlived the child by ``grace``, or a file is left in its ``TMPDIR``.
            The processes have been killed.
    """
    marker = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="uswap-child-") as name:
        work = Path(name)
        tmp = work / "tmp"
        tmp.mkdir()
        _write_spec(work, code, args)
        if user is not None:
            os.chmod(work, 0o755)
            os.chmod(tmp, 0o777)
        environ = {**os.environ, "TMPDIR": str(tmp), "PYTHONFAULTHANDLER": "1", ID: marker}
        for key, value in (env or {}).items():
            if value is None:
                environ.pop(key, None)
            else:
                environ[key] = value
        command = [sys.executable, *python, __file__, str(work / "spec.json"), str(timeout)]
        out, err = work / "stdout", work / "stderr"
        started = time.monotonic()
        # Files, not pipes: a process left behind holds a pipe open, and reading it would hang.
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=tmp,
                env=environ,
                start_new_session=True,
                user=user,
                group=_group_of(user),
                extra_groups=None if user is None else [],
            )
        timed_out = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            _kill_run(process, marker)
        except BaseException:  # such as KeyboardInterrupt
            _kill_run(process, marker, stacks=False)
            raise
        seconds = time.monotonic() - started
        left = _wait_for_none(marker, 0 if timed_out else grace)
        described = [_describe(one) for one in left]
        _kill(left)
        result = ChildResult(process.returncode, _text(out), _text(err), seconds, timed_out)
        files = sorted(str(path.relative_to(tmp)) for path in tmp.rglob("*"))
    if described:
        raise LeftBehind(f"processes outlived the child: {'; '.join(described)}\n{result}")
    if check and (timed_out or result.returncode != 0):
        raise ChildFailed(result)
    # One that was killed could not clean up after itself.
    if files and not timed_out and result.returncode >= 0:
        raise LeftBehind(f"files outlived the child: {', '.join(files)}\n{result}")
    return result


def can_run_as(user: str | int) -> str | None:
    """Return None if ``run_child(user=user)`` works here, else why not, for ``pytest.skip``."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import uswap, sys; open(sys.argv[1]).close()", __file__],
            user=user,
            group=_group_of(user),
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, LookupError, ValueError) as exc:
        return f"cannot start Python as {user}: {exc}"
    if done.returncode:
        return f"Python as {user} cannot import uswap: {(done.stderr.splitlines() or ['?'])[-1]}"
    return None


def _group_of(user: str | int | None) -> int | None:
    if user is None:
        return None
    import pwd

    entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    return entry.pw_gid


def _write_spec(work: Path, code: str | Callable[..., object], args: Sequence[Any]) -> None:
    if isinstance(code, str):
        main = work / "main.py"
        main.write_text(textwrap.dedent(code), encoding="utf-8")
        spec = {"path": str(main), "function": None, "args": [str(one) for one in args]}
    else:
        name = code.__qualname__
        if not name.isidentifier():
            raise TypeError(f"{name} is not at the top level of a module; accepted: a def there")
        spec = {"path": code.__code__.co_filename, "function": name, "args": list(args)}
    (work / "spec.json").write_text(json.dumps(spec), encoding="utf-8")


# ---- the processes of a run


def processes_with(variable: str, value: str) -> list[Any]:
    """Return the live processes, other than this one, with that variable in their environment."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
        except (psutil.Error, OSError):
            pass  # gone, a zombie (which has no environment), or somebody else's
    return found


def _wait_for_none(marker: str, seconds: float) -> list[Any]:
    """Wait until no process of the run is left; return those that still are."""
    end = time.monotonic() + seconds
    pause = 0.005
    clean = 0
    # Twice none, since in the middle of an exec a process has no environment for a moment.
    while clean < 2:
        if left := processes_with(ID, marker):
            clean = 0
            if time.monotonic() >= end:
                return left
        else:
            clean += 1
        time.sleep(pause)
        pause = min(pause * 2, 0.2)
    return []


def _kill_run(process: subprocess.Popen[bytes], marker: str, *, stacks: bool = True) -> None:
    """End the child and everything of its run."""
    run = processes_with(ID, marker)
    if stacks:
        _signal(run, signal.SIGABRT)
        end = time.monotonic() + STACKS
        while time.monotonic() < end and (process.poll() is None or _alive(run)):
            time.sleep(0.02)
    # Until there is none: one may have started another meanwhile.
    end = time.monotonic() + GRACE
    while (run := processes_with(ID, marker)) and time.monotonic() < end:
        _kill(run)
    if process.poll() is None:
        process.kill()
    process.wait()


def _kill(processes: Sequence[Any]) -> None:
    _signal(processes, signal.SIGKILL)
    end = time.monotonic() + GRACE
    while _alive(processes) and time.monotonic() < end:
        time.sleep(0.01)


def _signal(processes: Sequence[Any], number: int) -> None:
    import psutil

    for process in processes:
        try:
            process.send_signal(number)  # psutil makes sure that the pid was not given to another
        except psutil.Error:
            pass


def _alive(processes: Sequence[Any]) -> bool:
    import psutil

    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except psutil.Error:
            pass
    return False


def _describe(process: Any) -> str:
    import psutil

    try:
        return f"{process.pid} ({' '.join(process.cmdline()) or process.name()})"
    except psutil.Error:
        return str(process.pid)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _shorten(text: str) -> str:
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN // 2]}\n[... {len(text) - SHOWN} characters ...]\n{text[-SHOWN // 2 :]}"


# ---- in the child


def _main() -> None:
    spec_path, timeout = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Should whoever started this be gone when the limit is reached. A C thread: it needs no GIL.
    faulthandler.dump_traceback_later(float(timeout) + STACKS + GRACE, exit=True)
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    path, function, args = spec["path"], spec["function"], spec["args"]
    if function is None:
        sys.argv = [path, *args]
        runpy.run_path(path, run_name="__main__")
        return
    module_spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    module_spec.loader.exec_module(module)
    answer = getattr(module, function)(*args)
    if answer is not None:
        print(json.dumps(answer))


if __name__ == "__main__":
    _main()
