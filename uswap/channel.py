# SPDX-License-Identifier: MIT
"""The client's end of the control socket: questions by any thread, answers in any order.

The problem is who reads. Any thread may ask while another waits, and a finaliser may run in the middle
of a question, in the very thread that asks, and ask on its own. So one thread at a time reads, for all;
the others wait for their answer to be put down. A question within a question reads by itself, since the
one that it interrupts can't, and may thereby read the outer one's answer: so nobody reads for longer
than SLICE before he looks whether his answer is there already.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from typing import Any

from . import wire
from .errors import PagerDied

__all__ = ["Channel"]

SLICE = 0.05  # seconds


class Channel:
    """Asks the pager process, and awaits its answers.

    Args:
        sock: the connected socket; from here on the channel's.
        process: the pager process, for messages.
    """

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self._sock = sock
        self._sock.settimeout(SLICE)
        self._process = process
        self._state = threading.Condition()  # over an RLock: finalisers come at any time
        self._answers: dict[int, wire.Message] = {}
        self._abandoned: set[int] = set()
        self._last_id = 0
        self._reader: int | None = None  # the thread that reads

    def call(
        self,
        op: str,
        arguments: wire.Message,
        *,
        fds: tuple[int, ...] = (),
        whole: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Ask and await the answer.

        Args:
            op: what is asked.
            arguments: by name.
            fds: descriptors to send along.
            whole: an exception from a signal handler (Ctrl-C) waits until the answer is there, since
                half of it would leave client and pager of two minds; the answer is its attribute
                uswap_answer then.
            timeout: seconds, or as long as it takes.

        Raises:
            OSError: the pager answers with an error.
            PagerDied: it is gone.
            TimeoutError: no answer in time.
        """
        with self._state:
            self._last_id += 1
            mine = self._last_id
        deadline = None if timeout is None else time.monotonic() + timeout
        late: BaseException | None = None
        self._send({"id": mine, "op": op, **arguments}, fds)
        while True:
            try:
                answer = self._wait(mine)
                if answer is not None:
                    break
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"no answer to {op!r} within {timeout} s")
            except (PagerDied, TimeoutError):
                raise
            except BaseException as e:
                if not whole:
                    with self._state:
                        self._abandoned.add(mine)
                    raise
                late = late or e
        if late is not None:
            late.uswap_answer = answer.get("ok")  # type: ignore[attr-defined]
            raise late
        if "error" in answer:
            raise OSError(answer["error"], answer["text"])
        return answer["ok"]

    def _send(self, message: wire.Message, fds: tuple[int, ...]) -> None:
        while True:
            try:
                return wire.send(self._sock, message, fds)
            except TimeoutError:  # the pager is busy, and the socket full
                continue
            except wire.Closed:
                raise self._died() from None

    def _wait(self, mine: int) -> wire.Message | None:
        """The answer, if it comes within a slice of time."""
        me = threading.get_ident()
        with self._state:
            if mine in self._answers:
                return self._answers.pop(mine)
            if self._reader not in (None, me):
                self._state.wait(SLICE)
                return self._answers.pop(mine, None)
            outer, self._reader = self._reader, me
        try:
            answer = wire.receive(self._sock)
            with self._state:
                number = answer["id"]
                if number in self._abandoned:
                    self._abandoned.discard(number)
                else:
                    self._answers[number] = answer
        except TimeoutError:
            pass
        except wire.Closed:
            raise self._died() from None
        finally:
            with self._state:
                self._reader = outer
                self._state.notify_all()
        with self._state:
            return self._answers.pop(mine, None)

    def _died(self) -> PagerDied:
        code = self._process.poll()
        return PagerDied(f"the pager process {self._process.pid} is gone (exit status {code})")

    def end(self) -> None:
        """Tell the pager process to end, wait for it, and close."""
        with contextlib.suppress(OSError, PagerDied):
            self._send({"id": 0, "op": "bye"}, ())
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._sock.close()

    def leave(self) -> None:
        """Let go without a word, at the interpreter's end: the pager serves until the process is gone.

        The descriptor stays open, and Popen has nothing to warn of.
        """
        self._process.returncode = 0
        self._sock.detach()

    def forget(self) -> None:
        """In a forked child: the socket is the parent's."""
        self._process.returncode = 0
        self._sock.close()
