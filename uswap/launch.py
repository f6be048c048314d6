# SPDX-License-Identifier: MIT
"""Start and end of the pager process.

The pager process takes nothing from the user's program but this package and what it depends on. The
interpreter starts without site, so that no .pth file and no sitecustomize runs, and without PYTHON*
variables; its sys.path is the standard library's. The few other modules that it needs are named to it,
each with the folder in which this process finds it, and only they are looked for there: a user's
queue.py is never taken for the library's, nor his uvloop.py for the package.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder

from . import limits
from .errors import PagerStartError

__all__ = ["low_descriptors_taken", "reap", "start"]

#: What the pager process imports, or (the last two) only looks for, beside the standard library.
_NEEDED = ("uswap", "_cffi_backend", "uvloop")
_WANTED = ("lz4", "zstandard")
#: Of the PYTHON* variables: where an interpreter that was moved finds its library; and what helps to find
#: out why a process hangs.
_KEPT = ("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONFAULTHANDLER")
_STDERR = 2

_PROGRAM = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]  # without the current directory
try:
    if sys.version_info[:2] != {version!a}:
        raise ImportError("it is Python %d.%d, and the program's is %d.%d" % (sys.version_info[:2] + {version!a}))
    from importlib.machinery import PathFinder
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None, folders={folders!a}):
            return PathFinder.find_spec(name, [folders[name]]) if name in folders else None
    sys.meta_path.append(Finder)
    from uswap.pager.__main__ import main
except BaseException as e:
    import json, os
    os.write(int(sys.argv[1]), json.dumps(dict(error=0, text="%s can't run it: %s: %s" % (
        sys.executable, type(e).__name__, e))).encode())
    sys.exit(1)
main()
"""


def start(sock: socket.socket, python: str = "") -> subprocess.Popen[bytes]:
    """Start the pager process, with its end of the control socket.

    Args:
        sock: that end.
        python: the interpreter to run it; by default one is looked for.

    Raises:
        PagerStartError: there is no interpreter to run it, or it can't be started; says why.
    """
    program = _PROGRAM.format(version=tuple(sys.version_info[:2]), folders=_folders())
    isolated = ["-s", "-S", "-W", "ignore"] + (["-P"] if sys.version_info >= (3, 11) else [])
    fd = sock.fileno()
    interpreter = _interpreter(python)
    try:
        return subprocess.Popen(
            [interpreter, *isolated, "-c", program, str(fd)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if _has_stderr() else subprocess.DEVNULL,
            env={
                name: value
                for name, value in os.environ.items()
                if not name.startswith("PYTHON") or name in _KEPT
            },
            cwd="/",
            start_new_session=True,
        )
    except OSError as e:
        what = f"the pager process could not be started by {interpreter!r}"
        why = limits.explain(e.errno, what) if e.errno in limits.LIMITS else f"{what}: {e}"
        raise PagerStartError(why) from e


def _has_stderr() -> bool:
    """Is descriptor 2 the stderr that this program was started with?

    Where it was started without, 2 is closed, or given to something else by now; what is closed at exec
    would be the first that the pager process opens.
    """
    if sys.__stderr__ is None:
        return False
    try:
        return not fcntl.fcntl(_STDERR, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return False


def reap(pid: int) -> None:
    """Wait for a pager process that was told to end.

    Not by Popen, which the collector may finalise before its pager, and which then warns of a child.
    """
    with contextlib.suppress(ChildProcessError):  # somebody who waits for any child had it
        end, pause = time.monotonic() + 5, 0.0005
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.02)


# ---- modules


def _folders() -> dict[str, str]:
    """The folder of each module that the pager process needs."""
    found = {name: folder for name in _NEEDED + _WANTED if (folder := _folder(name)) is not None}
    if missing := [name for name in _NEEDED if name not in found]:
        raise PagerStartError(
            f"the pager process needs {', '.join(missing)}, which can't be found; accepted: uswap installed"
            " with what it depends on (pip install uswap)"
        )
    return found


def _folder(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: a stand-in without a spec in sys.modules
        spec = None
    if not _is_it(spec):
        # Another module of that name comes first, such as one beside the user's script.
        found = (PathFinder.find_spec(name, [one]) for one in sys.path if isinstance(one, str))
        spec = next(filter(_is_it, found), None)
    if spec is None or spec.origin is None:
        return None
    folder = os.path.dirname(os.path.abspath(spec.origin))
    return folder if spec.submodule_search_locations is None else os.path.dirname(folder)


def _is_it(spec: ModuleSpec | None) -> bool:
    """Is it a package, or an extension, as all are that are looked for, and not a single source file?"""
    return (
        spec is not None
        and spec.origin is not None
        and os.path.isfile(spec.origin)
        and (spec.submodule_search_locations is not None or not spec.origin.endswith(".py"))
    )


# ---- the interpreter


def _interpreter(wanted: str) -> str:
    """The program to run: `wanted`, or one that is an interpreter of this version as far as its name tells.

    sys.executable need not be one: a program that embeds Python may leave it empty, or name itself there,
    and would start once more as a whole.
    """
    version = f"python{sysconfig.get_python_version()}{getattr(sys, 'abiflags', '')}"
    if wanted:
        if _runs(wanted):
            return os.path.abspath(wanted)
        raise PagerStartError(f"python={wanted!r} can't be run; accepted: the path of a {version}")
    for candidate in _candidates(version):
        names = (os.path.basename(candidate), os.path.basename(os.path.realpath(candidate)))
        if any("python" in name for name in names) and _runs(candidate):
            return os.path.abspath(candidate)
    raise PagerStartError(
        f"no interpreter to run the pager process: sys.executable is {sys.executable!r}, and no {version} is"
        f" where this one comes from; accepted: python= or USWAP_PYTHON, the path of a {version}"
    )


def _candidates(version: str) -> Iterator[str]:
    if not getattr(sys, "frozen", False):
        yield from filter(None, (sys.executable, getattr(sys, "_base_executable", None)))
    folders = (sysconfig.get_config_var("BINDIR"), os.path.join(sys.base_exec_prefix, "bin"))
    for folder in filter(None, folders):
        yield os.path.join(folder, version)
    if (found := shutil.which(version)) is not None:
        yield found


def _runs(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


# ---- descriptors


@contextlib.contextmanager
def low_descriptors_taken() -> Iterator[None]:
    """Keep descriptors 0 to 2 from being given to what is opened meanwhile.

    A program may start with them closed. What we open and keep must not get one: whatever a library
    writes to stderr would go there.
    """
    taken: list[int] = []
    try:
        while not taken or taken[-1] <= _STDERR:
            taken.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        yield
    finally:
        for fd in taken:
            os.close(fd)
