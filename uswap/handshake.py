# SPDX-License-Identifier: MIT
"""The client's half of the first words: the configuration goes to the pager process, which says that it is ready."""

from __future__ import annotations

import contextlib
import socket
import subprocess

from . import wire
from .errors import PagerStartError

__all__ = ["greet"]


def greet(
    sock: socket.socket,
    process: subprocess.Popen[bytes],
    hello: wire.Message,
    fds: dict[str, int],
    timeout: float,
) -> wire.Message:
    """Send the pager process its configuration, and return what it says of itself.

    Raises:
        PagerStartError: it did not become ready in time, or says why it can't.
    """
    failed = "the pager process did not become ready"
    sock.settimeout(timeout)
    try:
        with contextlib.suppress(wire.Closed):  # what it said before it ended can be read still
            wire.send(sock, hello | {"fds": list(fds)}, tuple(fds.values()))
        try:
            answer = wire.receive(sock)
        except wire.Closed:  # of one that did not read ours the kernel tells before it gives us his
            answer = wire.receive(sock)
    except wire.Closed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        raise PagerStartError(
            f"{failed}: process {process.pid} is gone (exit status {process.returncode}); it was run by"
            f" {process.args[0]!r}, and python= or USWAP_PYTHON names another interpreter"  # type: ignore[index]
        ) from None
    except TimeoutError as e:
        raise PagerStartError(f"{failed}: no answer within {timeout:g} s") from e
    except OSError as e:
        raise PagerStartError(f"{failed}: {e}") from e
    if "error" in answer:
        number = f"[Errno {answer['error']}] " if answer["error"] else ""
        raise PagerStartError(f"{failed}: {number}{answer['text']}")
    about: wire.Message = answer["ok"]
    return about
