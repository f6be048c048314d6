# SPDX-License-Identifier: MIT
"""What uswap raises, and what it warns of.

Everything raised on uswap's own account is a :class:`UswapError`. Each class also derives from the
built-in exception that fits, so that code which knows nothing of uswap can catch it. An argument of
the wrong kind or out of range is a plain ``TypeError`` or ``ValueError``. What has a region as an
attribute lies beside it: LostDataError, in ``region``.
"""

from __future__ import annotations

__all__ = [
    "BufferRefusedError",
    "ClosedError",
    "DegradedWarning",
    "LimitError",
    "PagerDied",
    "PagerStartError",
    "StillPagedWarning",
    "UnknownVariableWarning",
    "UnsupportedKernelError",
    "UswapError",
    "UswapWarning",
]


class UswapError(Exception):
    """The base of every exception that uswap defines."""


class PagerDied(UswapError, RuntimeError):
    """The pager process is gone, and with it the blocks that were not in RAM."""


class PagerStartError(UswapError, RuntimeError):
    """The pager process could not be started, or was not ready in time."""


class UnsupportedKernelError(UswapError, OSError):
    """The kernel lacks, or refuses to this process, what uswap cannot do without.

    Like any ``OSError`` it may be made from an errno and a message, and then has ``errno``.
    """


class BufferRefusedError(UswapError, ValueError):
    """A buffer that cannot be paged where it lies. Nothing has been changed.

    Args:
        buffer: the buffer, as a person would name it ("ndarray of 3 MiB at 0x7f...").
        reason: why it cannot be paged.
        accepted: what could be given in its place.
    """

    buffer: str
    reason: str
    accepted: str

    def __init__(self, buffer: str, reason: str, accepted: str) -> None:
        # All three go to the base class, so that the exception survives pickling.
        super().__init__(buffer, reason, accepted)
        self.buffer = buffer
        self.reason = reason
        self.accepted = accepted

    def __str__(self) -> str:
        return f"cannot page {self.buffer}: {self.reason}; accepted: {self.accepted}"


class ClosedError(UswapError, ValueError):
    """The pager or the region was used after it had been closed."""


class LimitError(UswapError, ValueError):
    """Limits that cannot be kept together, such as a ``limit`` smaller than one block."""


class UswapWarning(UserWarning):
    """The base of every warning that uswap defines."""


class DegradedWarning(UswapWarning):
    """uswap works, but less well than it could; the message says what it costs and what mends it.

    An example: without privilege, system calls on evicted memory fail with EFAULT.
    """


class UnknownVariableWarning(UswapWarning):
    """An environment variable begins with USWAP_ and is none of uswap's, so it says nothing.

    The message names the one that is most like it. Warned of by the first pager of a process.
    """


class StillPagedWarning(UswapWarning):
    """A pager was closed whose arrays are still in use and would not fit into RAM: it goes on serving them."""
