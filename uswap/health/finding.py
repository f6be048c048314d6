# SPDX-License-Identifier: MIT
"""One thing looked at, and how bad it is."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding", "Status", "describe_error", "worst"]


class Status(enum.IntEnum):
    """How bad it is; the exit status of `uswap doctor` is the worst of all."""

    OK = 0
    DEGRADED = 1
    FAILED = 2


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name, value: what, and what was found.
        cost: what it costs that it is so; empty when all is well.
        mend: commands that mend it, one way each; words in place of a command begin with "#".
    """

    name: str
    value: str
    status: Status = Status.OK
    cost: str = ""
    mend: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "status": self.status.name.lower(), "mend": list(self.mend)}


def worst(findings: Sequence[Finding]) -> Status:
    """The worst status among them."""
    return max((finding.status for finding in findings), default=Status.OK)


def describe_error(code: int) -> str:
    """Return an errno by name and in words."""
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"
