# SPDX-License-Identifier: MIT
"""The exception tree."""

from __future__ import annotations

import errno
import pickle

import pytest

from uswap import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_one_base(name: str) -> None:
    """Every exception derives from UswapError, every warning from UswapWarning."""
    cls = getattr(errors, name)
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
        (errors.DegradedWarning, UserWarning),
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


def test_unsupported_kernel_has_errno() -> None:
    """UnsupportedKernelError is made and read like any OSError."""
    error = errors.UnsupportedKernelError(errno.EPERM, "userfaultfd is refused")
    assert error.errno == errno.EPERM
    assert "userfaultfd is refused" in str(error)
