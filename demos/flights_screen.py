# SPDX-License-Identifier: MIT
"""How sizes, times and progress look, on a terminal and elsewhere."""

from __future__ import annotations

import os
import shutil
from typing import TextIO

from flights_computation import PHASES


def size(n: float) -> str:
    """Bytes in MiB or GiB with three digits, right-aligned by the caller."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if n >= unit:
            value = n / unit
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {name}"
    return f"{n / 1024:.0f} KiB"


def duration(ns: float) -> str:
    """Nanoseconds as microseconds or milliseconds."""
    if ns >= 1e6:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e3:.1f} us"


class Look:
    """How wide, whether in colour, and with which characters."""

    def __init__(self, out: TextIO) -> None:
        self.tty = out.isatty()
        self.width = max(60, min(100, shutil.get_terminal_size((80, 24)).columns))
        try:
            "\u2588\u2593\u2591\u2584\u2524\u2500".encode(out.encoding or "ascii")
            self.unicode = True
        except (UnicodeEncodeError, LookupError):
            self.unicode = False
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.colour = self.tty and self.unicode and not plain
        # Arrays, rest of the process, pager.
        self.shades = "\u2588\u2593\u2591" if self.unicode else "#+."
        self.colours = (34, 36, 90)
        self.rule, self.dash, self.tick, self.corner = (
            "\u2500\u2504\u2502\u2514" if self.unicode else "--|+"
        )

    def style(self, text: str, code: int) -> str:
        """The text in a colour, if there are any."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def legend(self) -> list[str]:
        """What the plot's areas and its line are."""
        names = ("arrays in RAM", "rest of the process", "pager and its pool")
        shades = self.shades[0] * 3 if self.colour else self.shades
        marks = [self.style(*one) for one in zip(shades, self.colours, strict=True)]
        marks.append(self.style(self.dash, 33))
        return [
            f"{mark} {name}" for mark, name in zip(marks, (*names, "unpaged peak"), strict=True)
        ]

    def bar(self, part: float, width: int) -> str:
        """A bar that is filled in part."""
        part = min(1.0, max(0.0, part))
        if not self.unicode:
            full = int(part * width)
            return "#" * full + "." * (width - full)
        eighths = int(part * width * 8)
        text = "\u2588" * (eighths // 8)
        if eighths % 8:
            text += chr(0x2590 - eighths % 8)
        return self.style(text, 34) + self.style("\u2500" * (width - len(text)), 90)


class Progress:
    """A bar on a terminal, else a line for each phase."""

    def __init__(self, out: TextIO, look: Look) -> None:
        self.out = out
        self.look = look
        self.phases = PHASES

    def show(self, run: str, phase: str, done: float, seconds: float, memory: str) -> None:
        """Show how far a run is."""
        if not self.look.tty:
            return
        before = 0.0
        for name, part in self.phases.items():
            if name == phase:
                break
            before += part
        all_of_it = before + self.phases.get(phase, 0.0) * done
        left = f"{run:<8} {phase:<8}"
        right = f" {100 * all_of_it:3.0f} % {seconds:5.1f} s  {memory}"
        bar = self.look.bar(all_of_it, self.look.width - len(left) - len(right) - 1)
        self._write(f"\r{left}{bar}{right}\x1b[K")

    def note(self, text: str) -> None:
        """Say what goes on before there is anything to measure."""
        if self.look.tty:
            self._write(f"\r{text} ...\x1b[K")

    def phase(self, run: str, phase: str, seconds: float, memory: str) -> None:
        """A phase is over."""
        if not self.look.tty:
            self._write(f"{run:<8} {phase:<8} {seconds:6.1f} s  {memory}\n")

    def clear(self) -> None:
        """Take the bar away."""
        if self.look.tty:
            self._write("\r\x1b[K")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
