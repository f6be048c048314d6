# SPDX-License-Identifier: MIT
"""What `uswap doctor` prints."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from ..health import Finding, Status

__all__ = ["render"]

_MARKS = {Status.OK: "ok", Status.DEGRADED: "DEGRADED", Status.FAILED: "FAILED"}
MARK = max(map(len, _MARKS.values()))


def render(findings: Sequence[Finding], verdict: str, *, width: int | None = None) -> str:
    """Return the findings as text, each shortfall with its cost and what mends it.

    Args:
        verdict: the last line.
        width: columns; those of the terminal by default. Commands are never broken.
    """
    width = min(width or shutil.get_terminal_size().columns, 110)
    name = max((len(finding.name) for finding in findings), default=0)
    indent = MARK + 2 + name + 2
    lines = []
    for finding in findings:
        head = f"{_MARKS[finding.status]:{MARK}}  {finding.name:{name}}  "
        lines += _wrap(finding.value, head, indent, width)
        if finding.cost:
            lines += _wrap(finding.cost, " " * indent, indent, width)
        for number, command in enumerate(finding.mend):
            lead = "to mend: " if number == 0 else "or:      "
            lines.append(" " * indent + lead + command.removeprefix("# "))
    return "\n".join([*lines, "", verdict])


def _wrap(text: str, head: str, indent: int, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, indent + 30),
        initial_indent=head,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
