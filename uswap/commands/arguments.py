# SPDX-License-Identifier: MIT
"""Arguments that several commands take: their values, functions for argparse's ``type=``, and ``--plot``.

argparse shows the message of an ArgumentTypeError, and of no other exception.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..options import parse_block
from ..paths import why_no_directory
from ..sizes import parse_size

__all__ = [
    "argument",
    "block",
    "blocks",
    "count",
    "directory",
    "names",
    "number",
    "plot",
    "several",
    "size",
]

Parse = Callable[[str], Any]


def argument(parse: Parse) -> Parse:
    """Have argparse show what `parse` says of a wrong value."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except (TypeError, ValueError) as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None

    return checked


def several(parse: Parse) -> Parse:
    """Several values, with commas between: a list."""
    return lambda text: [parse(part) for part in text.split(",")]


def size(minimum: int, *, multiple: int | None = None) -> Parse:
    """Bytes, or "64MiB"."""
    return argument(lambda text: parse_size(text, "size", minimum=minimum, multiple=multiple))


def count(most: int, *, least: int = 0) -> Parse:
    """An integer."""

    def parse(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = least - 1
        if not least <= found <= most:
            raise ValueError(f"{text!r}; accepted: an integer from {least} to {most}")
        return found

    return argument(parse)


def number(least: float, most: float) -> Parse:
    """A number that need not be whole."""

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            raise ValueError(f"{text!r}; accepted: a number from {least:g} to {most:g}")
        return found

    return argument(parse)


def names(known: Sequence[str]) -> Parse:
    """Some of the known ones, each once: a tuple."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in known:
                raise ValueError(f"{name!r}; accepted: {', '.join(known)}, with commas between")
        return found

    return argument(parse)


@argument
def directory(text: str) -> str:
    """One in which files can be made."""
    if (why := why_no_directory(text)) is not None:
        raise ValueError(f"{text!r} {why}; accepted: a directory in which a file can be made")
    return text


block = argument(lambda text: parse_block(text))
blocks = several(block)


def plot(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare ``--plot``; `what` is drawn."""
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help=f"draw {what} into a .png, .svg or .pdf file (needs matplotlib)",
    )
