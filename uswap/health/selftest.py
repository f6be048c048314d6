# SPDX-License-Identifier: MIT
"""The self-test: a region paged out and in, in a child process under a time limit."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..options import OPTIONS
from ..sizes import format_size
from .facts import Facts
from .finding import Finding, Status, describe_error
from .place import SWAP_TEST_SEGMENT, SWAP_TEST_SIZE

__all__ = ["SelfTest", "child", "self_test"]

SELF_TEST_LIMIT = 20.0  # seconds
SELF_TEST_SIZE = 1 << 20
START_GOAL = 300  # milliseconds in which a pager should be ready


@dataclass(frozen=True)
class SelfTest:
    """How it went.

    Attributes:
        error: empty when a region went out and came back unchanged.
        start_ms: until the pager was ready.
        system_call_errno: of a system call on evicted memory.
    """

    error: str = ""
    start_ms: float = 0.0
    fault_us: float = 0.0
    uffd: str = ""
    take: str = ""
    drop: str = ""
    codec: str = ""
    system_call_errno: int = 0
    io: str = ""
    stored: int = 0
    """Bytes that went to the swap file and came back, where it is tested with one."""

    def judge(self, name: str = "self-test") -> Finding:
        """Say what it means; `name` is what was tested."""
        if self.error:
            return Finding(
                name,
                self.error,
                Status.FAILED,
                "Paging does not work here.",
                (
                    "# mend what is above; if nothing is, please report this with `uswap doctor --json`",
                ),
            )
        if self.stored:
            return Finding(
                name,
                f"{format_size(self.stored)} went to the swap file by {self.io} and came back "
                f"unchanged, {self.fault_us:.0f} µs a fault on average",
            )
        value = (
            f"{format_size(SELF_TEST_SIZE)} went out and came back unchanged; pager ready in "
            f"{self.start_ms:.0f} ms, {self.fault_us:.0f} µs a fault on average "
            f"({self.uffd}, {self.take}, {self.drop}, {self.codec})"
        )
        if self.start_ms > START_GOAL:
            value += (
                f"; a start should take less than {START_GOAL} ms: the first one often does not"
            )
        if self.system_call_errno and self.uffd != "user-mode":
            return Finding(
                name,
                value,
                Status.FAILED,
                f"A system call on evicted memory gave {describe_error(self.system_call_errno)}.",
            )
        return Finding(name, value)


def self_test(
    facts: Facts,
    *,
    swapfile: str = "",
    limit: float = SELF_TEST_LIMIT,
    command: Sequence[str] | None = None,
) -> SelfTest:
    """Page a region out and in, in a child process that is killed at the limit.

    Args:
        facts: for the codec to use.
        swapfile: a directory for a swap file that most of it has to go through.
        limit: seconds.
        command: what to run in place of the real test; for tests.
    """
    if command is None:
        ready = [codec.name for codec in facts.codecs if codec.origin is not None]
        codec = "lz4" if "lz4" in ready or not ready else ready[0]
        path = [one for one in sys.path if isinstance(one, str)]  # an import passes by what is not
        start = (
            f"import sys; sys.path[:] = {path!r}; from uswap.health.selftest import child; child()"
        )
        command = [sys.executable, "-c", start, codec if ready else "none", swapfile]
    ours = {option.env for option in OPTIONS}
    environ = {name: value for name, value in os.environ.items() if name not in ours}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        start_new_session=True,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _end(process)
        return SelfTest(error=f"no answer within {limit:g} s: a fault was not served")
    except BaseException:  # such as KeyboardInterrupt
        _end(process)
        raise
    if process.returncode != 0:
        return SelfTest(error=_why(process.returncode, err))
    answer = json.loads(out.splitlines()[-1])
    return SelfTest(**answer)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the child; its pager sees that, and ends by itself."""
    process.kill()
    process.communicate()


def _why(status: int, err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    if status < 0:
        return f"the child was ended by {signal.Signals(-status).name}{': ' if lines else ''}" + (
            lines[-1] if lines else ""
        )
    return lines[-1] if lines else f"the child ended with status {status}"


def child() -> None:
    """The self-test itself; prints a SelfTest's fields as JSON."""
    import warnings

    from ..client import Pager

    warnings.simplefilter("ignore")  # that it is degraded is what the doctor says
    sys.stdout.write(json.dumps(_round_trip(Pager, *sys.argv[1:])) + "\n")


def _round_trip(make: Any, codec: str, swapfile: str) -> Mapping[str, Any]:
    size = SWAP_TEST_SIZE if swapfile else SELF_TEST_SIZE
    options = {"limit": "16MiB", "pool": "16MiB", "codec": codec, "readahead": 0, "block": 4096}
    if swapfile:
        options |= {
            "pool": size // 4,
            "swapfile": swapfile,
            "swap": 4 * size,
            "segment": SWAP_TEST_SEGMENT,
        }
    begin = time.perf_counter()
    with make(**options) as pager:
        start_ms = (time.perf_counter() - begin) * 1000
        if swapfile:
            pattern = os.urandom(size)  # does not compress, so the pool does not hold it
        else:
            pattern = bytes(range(251)) * (size // 251 + 1)
            pattern = b"".join(  # no block is like another, nor one repeated word
                i.to_bytes(8, "little") + pattern[i : i + 4088] for i in range(size // 4096)
            )
        region = pager.region(size)
        with memoryview(region) as view:
            view[:] = pattern
            region.evict()
            where = region.residency()
            if where.resident and not swapfile:
                return {"error": f"{where.resident} bytes did not leave"}
            if swapfile and not where.stored:
                return {"error": "nothing was written to the swap file"}
            call = _system_call(view[:4096])
            begin = time.perf_counter()
            back = view.tobytes()  # holds the GIL, as most of Python does
            fault_us = (time.perf_counter() - begin) * 1e6 / (size // 4096)
            if back != pattern:
                return {"error": "the bytes that came back are not those that went"}
        about = pager.about()
        region.close()
    return {
        "start_ms": start_ms,
        "fault_us": fault_us,
        "uffd": about["uffd"],
        "take": about["take"],
        "drop": about["drop"],
        "codec": about["codec_from"],
        "system_call_errno": call,
        "io": about["io"],
        "stored": where.stored,
    }


def _system_call(evicted: memoryview) -> int:
    """Write evicted memory to a pipe; the errno, 0 if it works."""
    with evicted:
        reader, writer = os.pipe()
        try:
            os.write(writer, evicted)
        except OSError as exc:
            return exc.errno or errno.EIO
        finally:
            os.close(reader)
            os.close(writer)
    return 0
