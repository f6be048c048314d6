# SPDX-License-Identifier: MIT
"""All peers in turn, round by round."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from .. import kernel
from ..common import CHUNK, DATA, Load, Machine, Progress, load_codec, make_data
from ..programs import LIBRARIES
from ..subject import BY_NUMPY, WORKS
from .case import Case, Column, cases_of, columns_of
from .comparison import MARGIN, Peers
from .figures import Run
from .process import SubjectFailed, run_subject
from .result import Result

__all__ = ["TRIES", "measure"]

SLOWEST = 4 << 20  # bytes a second: what takes longer has hung
START = 120.0  # seconds more
TRIES = 3  # of a run that the kernel ends, out of memory
IMPORT = 120.0  # seconds
#: What is installed to have a module, where it is called otherwise.
PACKAGES = {"sklearn": "scikit-learn"}


def _skipped(config: Peers) -> dict[str, str]:
    """What can't be measured here, and why.

    Raises:
        kernel.Unavailable: the machine swaps already, so figures would be mixed.
    """
    found: dict[str, str] = {}
    wanted = set(config.peers) & {"zram", "zswap", "memmap"}
    if wanted & {"zram", "zswap"} and (devices := kernel.foreign_swap()):
        raise kernel.Unavailable(
            f"the machine swaps to {', '.join(devices)} already, so the figures of the kernel's peers would "
            f"be mixed; `swapoff {devices[0]}` first, or leave them out: "
            f"--peers {','.join(one for one in config.peers if one not in ('zram', 'zswap'))}"
        )
    group = kernel.why_no_cgroup() if wanted else None
    for peer, why in (
        ("zram", kernel.why_no_zram),
        ("zswap", kernel.why_no_zswap),
        ("memmap", lambda: None),
    ):
        if peer in wanted and (reason := group or why()):
            found[peer] = reason
    if importlib.util.find_spec("numpy") is None:
        for work in set(config.work) & set(BY_NUMPY):
            found[work] = "needs numpy: pip install 'uswap[numpy]'"
    why_not = functools.cache(_why_not)
    for work, modules in LIBRARIES.items():
        if work in config.work and work not in found:
            reasons = [text for module in modules if (text := why_not(module))]
            if reasons:
                found[work] = "; ".join(dict.fromkeys(reasons))
    return found


def _why_not(module: str) -> str | None:
    """Say why a library's module can't be had; None where it can.

    It is tried in a process of its own: one that was built for another NumPy, or another CPU, may take the
    process with it.
    """
    library = module.partition(".")[0]
    if importlib.util.find_spec(library) is None:
        return f"needs {PACKAGES.get(library, library)}: pip install 'uswap[bench]'"
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=IMPORT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{module} can't be imported: no answer in {IMPORT:.0f} s"
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return f"{module} can't be imported: {last}"


def measure(config: Peers, progress: Progress = lambda _what, _part: None) -> Result:
    """Measure; what was set up is undone also when it ends by an exception, SIGINT or SIGTERM.

    Raises:
        kernel.Unavailable: the machine swaps already.
        SubjectFailed: a peer failed, or read other bytes than were written.
        OSError: there is no room, or no codec.
    """
    load_codec("lz4")
    load = Load()
    result = Result(config, Machine.here())
    result.skipped = _skipped(config)
    result.about["kernel"] = kernel.settings(config.directory)
    config = replace(config, work=[one for one in config.work if one not in result.skipped])
    with kernel.terminable(), contextlib.ExitStack() as undo:
        steps: list[tuple[str, int, Callable[[], None]]] = []
        for data in config.data:
            steps += _steps(result, config, data, undo.enter_context(_chunk(config, data)))
        whole, done = sum(size for _, size, _ in steps), 0
        for what, size, step in steps:
            progress(what, done / whole)
            step()
            done += size
    result.others = load.others()
    progress("", 1.0)
    return result


@contextlib.contextmanager
def _chunk(config: Peers, data: str) -> Iterator[tuple[int, int]]:
    """Data that subjects repeat: a descriptor, and their length."""
    length = min(CHUNK, config.size, config.disk_size)
    fd = os.memfd_create("uswap-peers-data")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(make_data(DATA[data], length))
        yield fd, length
    finally:
        os.close(fd)


def _steps(
    result: Result, config: Peers, data: str, chunk: tuple[int, int]
) -> list[tuple[str, int, Callable[[], None]]]:
    """What there is to do: its name, how much it is (bytes), and what does it."""
    found: list[tuple[str, int, Callable[[], None]]] = []
    for over in config.over:
        for number in range(config.rounds):
            for group in config.groups():
                cases = cases_of(config, group, data, over, result.skipped)
                turn = number % max(1, len(cases))
                for case in cases[turn:] + cases[:turn]:
                    what = f"round {number + 1}: {data}, {over}x, {group}, {case.column}"
                    found.append(
                        (what, case.size, functools.partial(_run, result, case, number, chunk))
                    )
    if config.fits and "uswap" in config.peers:
        for number in range(config.rounds):
            for column in columns_of(config):
                fit = functools.partial(_fit, result, config, data, column, number, chunk)
                found.append((f"round {number + 1}: {data}, fits", config.size // 2, fit))
    return found


def _run(result: Result, case: Case, number: int, chunk: tuple[int, int]) -> None:
    name = f"{case.column} ({case.group}, {case.data}, {case.over}x, round {number + 1})"
    for left in reversed(range(TRIES)):
        with case.spec(number, chunk, result.about) as spec:
            try:
                found = run_subject(spec, START + case.size * (1 + len(WORKS)) / SLOWEST)
                break
            except SubjectFailed as exc:
                # Where a cgroup can't be told not to (version 2) the kernel ends a process when reclaim finds
                # nothing though there is swap enough. That is the peer's failing, not the benchmark's.
                if exc.signal != signal.SIGKILL or "cgroup" not in spec:
                    raise SubjectFailed(f"{name}: {exc}") from None
                if left:
                    continue
                found = exc.found
                missing = [one for one in spec["work"] if one not in found["work"]]
                result.killed[name] = ", ".join(missing)
    result.runs.append(
        Run(
            case.group,
            case.data,
            case.over,
            case.column,
            number,
            found["work"],
            found.get("density"),
            found.get("out"),
            found.get("about", {}),
            found.get("seconds", 0.0),
        )
    )


def _fit(
    result: Result,
    config: Peers,
    data: str,
    column: Column,
    number: int,
    chunk: tuple[int, int],
) -> None:
    limit = 2 * config.size + MARGIN
    spec = {
        "memory": "fits",
        "parent": os.getpid(),
        "round": number,
        "chunk": chunk,
        "data": data,
        "size": config.size,
        "limit": limit,
        "work": [],
        "seconds": config.seconds,
        "options": {"limit": limit, "pool": MARGIN, **column.options()},
    }
    found = run_subject(spec, START + config.size / SLOWEST)["fits"]
    result.fits.setdefault((data, column.name), []).append(found)
