# SPDX-License-Identifier: MIT
"""One line on stderr that says how far it is, for people only: a pipe or a file gets nothing."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

__all__ = ["ProgressLine"]

BAR = 24  # characters
EVERY = 0.1  # seconds between two drawings


class ProgressLine:
    """A progress bar that leaves nothing behind. A context manager; call it with what and how far.

    Args:
        stream: where to; silent unless it is a terminal.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream is not None and self._stream.isatty()
        self._last = 0.0
        self._what = ""

    def __call__(self, what: str, part: float) -> None:
        """Show that `part` (0 to 1) of the whole is done, and `what` is being done now."""
        now = time.monotonic()
        if not self._shown or (what == self._what and now - self._last < EVERY):
            return
        self._last, self._what = now, what
        full = round(BAR * min(max(part, 0.0), 1.0))
        line = f"[{'#' * full}{'.' * (BAR - full)}] {part:4.0%} {what}"
        self._write(line[: shutil.get_terminal_size().columns - 1])

    def _write(self, line: str) -> None:
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._shown and self._last:
            self._write("")
