# SPDX-License-Identifier: MIT
"""The process that runs a peer's workloads, started, heard, and ended at its limit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from .. import kernel

__all__ = ["SubjectFailed", "run_subject"]


class SubjectFailed(RuntimeError):
    """The process that ran the workloads has failed, or taken too long; the message has its last words.

    Args:
        found: what it had measured.
        signal: that has ended it, sent by somebody else; 0: none.
    """

    def __init__(self, message: str, found: dict[str, Any] | None = None, signal: int = 0) -> None:
        super().__init__(message)
        self.found = found or {}
        self.signal = signal


def run_subject(spec: dict[str, Any], limit: float) -> dict[str, Any]:
    """Run a subject in a process of its own, which is killed after `limit` seconds.

    Raises:
        SubjectFailed: it ended with an error, or was killed.
    """
    # As the pager is started: what lies in the current directory must not be imported in its place.
    start = f"import sys; sys.path[:] = {sys.path!r}; from uswap.bench.subject import main; main()"
    started = time.monotonic()
    process: subprocess.Popen[str] | None = None
    with tempfile.TemporaryFile("w+") as errors:
        try:
            with kernel.shielded():  # or it might run on, unknown
                process = subprocess.Popen(
                    [sys.executable, "-c", start],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=[spec["chunk"][0]],
                    text=True,
                    start_new_session=True,  # a terminal's signals are for this process
                )
            answer, _ = process.communicate(json.dumps(spec), timeout=limit)
        except BaseException as exc:
            if process is not None:
                with kernel.shielded():
                    process.kill()
                    process.communicate()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise SubjectFailed(f"killed after {limit:.0f} s") from None
            raise
        errors.seek(0)
        words = errors.read().strip()
    found: dict[str, Any] = {"work": {}, "seconds": time.monotonic() - started}
    for line in answer.splitlines():
        piece = json.loads(line)
        found["work"] |= piece.pop("work", {})
        found |= piece
    if process.returncode != 0:
        last = "\n".join(words.splitlines()[-12:])
        raise SubjectFailed(
            f"exit status {process.returncode}: {last}", found, max(0, -process.returncode)
        )
    return found
