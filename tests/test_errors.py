# SPDX-License-Identifier: MIT
"""The exception tree."""

from __future__ import annotations

import errno
import pickle

import pytest

import uswap
from uswap import errors


@pytest.mark.parametrize("name", [*errors.__all__, "LostDataError"])
def test_one_base(name: str) -> None:
    """Every exception derives from UswapError, every warning from UswapWarning."""
    cls = getattr(uswap, name)
    assert issubclass(cls, (errors.UswapError, errors.UswapWarning))
    assert cls.__doc__


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.PagerDied, RuntimeError),
        (errors.PagerStartError, RuntimeError),
        (errors.UnsupportedKernelError, OSError),
        (errors.BufferRefusedError, ValueError),
        (errors.ClosedError, ValueError),
        (errors.LimitError, ValueError),
        (uswap.LostDataError, OSError),
        (errors.DegradedWarning, UserWarning),
        (errors.UnknownVariableWarning, UserWarning),
    ],
)
def test_builtin_base(cls: type[Exception], builtin: type[Exception]) -> None:
    """Code that knows nothing of uswap can catch the built-in exception that fits."""
    assert issubclass(cls, builtin)


def test_buffer_refused_says_everything() -> None:
    """A refusal names the buffer, the reason and what is accepted, also after pickling."""
    error = errors.BufferRefusedError("ndarray of 3 MiB", "it is read-only", "writable memory")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert str(one) == (
            "cannot page ndarray of 3 MiB: it is read-only; accepted: writable memory"
        )
        assert (one.buffer, one.reason, one.accepted) == error.args


def test_lost_data_says_where() -> None:
    """It names region and ranges, the first of many in its message, and survives pickling."""
    error = uswap.LostDataError("region 3", [(0, 4096), (16384, 8192)])
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert (one.errno, one.region) == (errno.EIO, "region 3")
        assert one.lost == [(0, 4096), (16384, 8192)]
        assert "region 3 are lost: 4096 bytes at offset 0, 8192 bytes at offset 16384" in str(one)
    many = uswap.LostDataError("region 3", [(k * 8192, 4096) for k in range(100)])
    assert len(many.lost) == 100
    assert "4096 bytes at offset 24576, and 393216 bytes in 96 more ranges" in str(many)


def test_unsupported_kernel_has_errno() -> None:
    """UnsupportedKernelError is made and read like any OSError."""
    error = errors.UnsupportedKernelError(errno.EPERM, "userfaultfd is refused")
    assert error.errno == errno.EPERM
    assert "userfaultfd is refused" in str(error)
