# SPDX-License-Identifier: MIT
"""Tables and paragraphs in plain text that fit the terminal.

A table that is too wide is made to fit, and nothing of it is left out: its column of prose is wrapped, or
stands below each row; then the other columns are shown in groups, one table below the other, each with the
first column. The terminal's width is that of stdout, or COLUMNS; where there is neither (a pipe, a file)
it is 80.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["fits", "page", "render", "terminal_width"]

LEAST = 40  # columns; below, nothing can be laid out
PROSE = 16  # columns that prose is not squeezed below
INDENT = 4  # of prose below its row

Row = Sequence["str | None"]


def terminal_width() -> int:
    """Return the columns of the terminal."""
    return max(LEAST, shutil.get_terminal_size((80, 24)).columns)


def render(
    columns: Sequence[str],
    rows: Iterable[Row],
    *,
    keys: int = 1,
    gap: str = "  ",
    width: int | None = None,
) -> str:
    """Return a table, a line a row if it fits; what does not apply (None) is shown as a dash.

    Args:
        columns: headings. One that begins with ">" (not shown) is of a column of numbers, which
            stand to the right; one with "~" of prose, which may be wrapped.
        keys: how many columns, from the first on, tell rows apart: each group of columns has them.
        gap: what stands between two columns.
        width: columns of the terminal; its own by default.
    """
    width = terminal_width() if width is None else width
    lines = [[column.lstrip(">~") for column in columns]]
    lines += [["-" if cell is None else cell for cell in row] for row in rows]
    right = [column.startswith(">") for column in columns]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    every = range(len(columns))
    over = _total(widths, every, gap) - width
    if over <= 0:
        return "\n".join(_layout(lines, widths, right, every, gap))
    prose = [i for i in every if columns[i].startswith("~")]
    for i in prose:
        if widths[i] - over >= PROSE:
            widths[i] -= over
            return "\n".join(_layout(lines, widths, right, every, gap))
    rest = [i for i in every if i not in prose]
    widths[rest[0]] = min(widths[rest[0]], width // 2)
    for i in rest[keys:]:
        widths[i] = min(widths[i], max(1, width - _total(widths, rest[:keys], gap) - len(gap)))
    groups = list(_groups(widths, rest[:keys], rest[keys:], gap, width))
    tables = ["\n".join(_layout(lines, widths, right, group, gap)) for group in groups[:-1]]
    below = [[line[i] for i in prose] for line in lines]
    tables.append("\n".join(_layout(lines, widths, right, groups[-1], gap, below, width)))
    return "\n\n".join(tables)


def fits(text: str) -> bool:
    """Say whether no line of a text is wider than the terminal."""
    return max(map(len, text.split("\n"))) <= terminal_width()


def page(parts: Iterable[str], *, width: int | None = None) -> str:
    """Return paragraphs and tables, one below the other; paragraphs that are too wide are wrapped.

    Args:
        parts: a table has several lines, a paragraph one.
        width: columns of the terminal; its own by default.
    """
    width = terminal_width() if width is None else width
    lines = [part if "\n" in part else "\n".join(_words(part, width, "", "  ")) for part in parts]
    return "\n".join(lines)


def _total(widths: Sequence[int], columns: Sequence[int], gap: str) -> int:
    return sum(widths[i] for i in columns) + len(gap) * (len(columns) - 1)


def _groups(
    widths: Sequence[int], keys: Sequence[int], others: Sequence[int], gap: str, width: int
) -> Iterator[list[int]]:
    """Columns that fit beside the keys, in their order, as few groups as that takes."""
    group = [*keys]
    for i in others:
        if len(group) > len(keys) and _total(widths, [*group, i], gap) > width:
            yield group
            group = [*keys]
        group.append(i)
    yield group


def _layout(
    lines: Sequence[Sequence[str]],
    widths: Sequence[int],
    right: Sequence[bool],
    columns: Sequence[int],
    gap: str,
    below: Sequence[Sequence[str]] = (),
    wide: int = 0,
) -> Iterator[str]:
    """Some columns of a table; a cell that is wider than its column takes several lines.

    Args:
        below: paragraphs for each line, the heading included, that stand below it.
        wide: columns that they may take.
    """
    for number, line in enumerate(lines):
        cells = [_wrap(line[i], widths[i]) for i in columns]
        for k in range(max(map(len, cells))):
            parts = [cell[k] if k < len(cell) else "" for cell in cells]
            yield gap.join(
                part.rjust(widths[i]) if right[i] else part.ljust(widths[i])
                for part, i in zip(parts, columns, strict=True)
            ).rstrip()
        for text in below[number] if below else ():
            yield from _words(text, wide, " " * INDENT, " " * INDENT)


def _wrap(text: str, width: int) -> list[str]:
    """The lines of a cell; a word that is wider than the column is cut up, but nothing is left out."""
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _words(text: str, width: int, first: str, indent: str) -> list[str]:
    """The lines of a paragraph, in which words stay whole."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]
