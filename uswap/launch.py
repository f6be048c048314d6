# SPDX-License-Identifier: MIT
"""Start of the pager process.

It takes nothing from the user's program but this package and what it depends on: the interpreter is
isolated (no PYTHON* variables, no script folder, no current directory, no user's warnings filters), the
package is loaded from the very files that this process has, and the folders in which its dependencies
were found stand behind the standard library's, so that a user's queue.py is never taken for the library's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

from .errors import PagerStartError

__all__ = ["low_descriptors_taken", "start"]

_DEPENDENCIES = ("_cffi_backend", "uvloop", "lz4", "zstandard", "blosc2")
_STDERR = 2

_PROGRAM = """
import importlib.util, sys
sys.path += [folder for folder in {folders!r} if folder not in sys.path]
spec = importlib.util.spec_from_file_location("uswap", {init!r}, submodule_search_locations=[{package!r}])
sys.modules["uswap"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from uswap.pager.__main__ import main
main()
"""


def start(sock: socket.socket) -> subprocess.Popen[bytes]:
    """Start the pager process, with its end of the control socket.

    Raises:
        PagerStartError: there is no interpreter to run it, or it can't be started; says why.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    program = _PROGRAM.format(
        folders=_folders(), init=os.path.join(package, "__init__.py"), package=package
    )
    fd = sock.fileno()
    try:
        os.fstat(_STDERR)
        stderr = None
    except OSError:  # closed: it must not be what the process opens first
        stderr = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [_interpreter(), "-I", "-W", "ignore", "-c", program, str(fd)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    except OSError as e:
        raise PagerStartError(f"the pager process could not be started: {e}") from e


def _folders() -> list[str]:
    """Where the dependencies are, in the order in which this process would look."""
    folders = []
    for name in _DEPENDENCIES:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec is None or not spec.origin:
            continue
        folder = os.path.dirname(os.path.abspath(spec.origin))
        if spec.submodule_search_locations is not None:
            folder = os.path.dirname(folder)
        if folder not in folders:
            folders.append(folder)
    return folders


def _interpreter() -> str:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if sys.executable:
        return sys.executable
    bindir = sysconfig.get_config_var("BINDIR") or ""
    for candidate in (getattr(sys, "_base_executable", ""), os.path.join(bindir, version)):
        if candidate and os.access(candidate, os.X_OK):
            return str(candidate)
    raise PagerStartError(
        f"sys.executable is {sys.executable!r} and there is no {version} in {bindir!r}, so that the pager"
        f" process can't be started; accepted: sys.executable set to a {version}"
    )


@contextlib.contextmanager
def low_descriptors_taken() -> Iterator[None]:
    """Keep descriptors 0 to 2 from being given to what is opened meanwhile.

    A program may start with them closed. What we open and keep must not get one: whatever a library
    writes to stderr would go there.
    """
    taken = []
    try:
        while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= _STDERR:
            taken.append(fd)
        taken.append(fd)
        yield
    finally:
        for fd in taken:
            os.close(fd)
