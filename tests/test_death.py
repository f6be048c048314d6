# SPDX-License-Identifier: MIT
"""One of the two processes is killed: nothing is left of the client's, and nobody ever reads zeros."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import uswap

import workload
from child import processes_with, run_child
from workload import MIB, evicted

FAULTS_BY = ("inline", "message")

MESSAGE = "uswap: the pager process has ended"


def client_killed(how: str) -> None:
    """What the children of test_client_killed run."""
    pager = uswap.Pager(limit=MIB, pool=16 * MIB)
    region = pager.region(8 * MIB)
    view = memoryview(region)
    view[:] = workload.data("numbers", 8 * MIB, workload.random.Random(1))
    evicted(region)
    print(pager.pid, flush=True)
    if how == "busy":
        for k in range(4):
            threading.Thread(target=_touch, args=[view, k], daemon=True).start()
        time.sleep(0.3)
    if how == "exit":
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def _touch(view: memoryview, k: int) -> None:
    while True:
        for at in range(k, len(view), 4096):
            view[at] ^= 1


@pytest.mark.parametrize("how", ["idle", "busy", "exit"])
def test_client_killed(how: str) -> None:
    """A client that is killed leaves no pager process, and with it no memory and no file."""
    # run_child itself fails if a process or a file is left.
    result = run_child(client_killed, args=[how], check=False, python=["-X", "dev"])
    assert result.returncode == (0 if how == "exit" else -signal.SIGKILL), result
    assert int(result.stdout) > 0
    assert "Traceback" not in result.stderr, result


def pager_killed(how: str, number: int) -> None:
    """What the children of test_pager_killed run."""
    pager = uswap.Pager(limit=MIB, pool=16 * MIB, delays="serve:2000" if how == "faulting" else "")
    region = pager.region(8 * MIB)
    view = memoryview(region)
    content = workload.data("text", 8 * MIB, workload.random.Random(1))
    view[:] = content
    evicted(region)

    def read(k: int) -> None:
        while True:
            for at in range(k, len(view), 4096):
                if view[at] != content[at]:
                    os.write(1, b"WRONG\n")

    if how == "faulting":
        for k in range(4):
            threading.Thread(target=read, args=[k], daemon=True).start()
        time.sleep(0.3)
    if how == "evicting":
        threading.Thread(target=lambda: [region.evict() for _ in iter(int, 1)], daemon=True).start()
        threading.Thread(target=read, args=[0], daemon=True).start()
        time.sleep(0.3)
    if how == "asking":
        os.kill(pager.pid, signal.SIGSTOP)
        threading.Thread(target=region.evict, daemon=True).start()
        time.sleep(0.2)
    os.kill(pager.pid, number)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for at in range(0, len(view), 4096):
            if view[at] != content[at]:
                os.write(1, b"WRONG\n")
        time.sleep(0.001)
    print("alive")


@pytest.mark.parametrize("how", ["idle", "faulting", "evicting", "asking"])
def test_pager_killed(how: str) -> None:
    """A pager that is killed takes its client along by SIGABRT, with a message; no zeros, no hang."""
    result = run_child(pager_killed, args=[how, int(signal.SIGKILL)], check=False, timeout=30)
    assert not result.timed_out, result
    assert result.returncode == -signal.SIGABRT, result
    assert MESSAGE in result.stderr, result
    assert result.stdout == ""


def pager_terminated() -> None:
    """What the child of test_signals runs."""
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        region = pager.region(4 * MIB)
        view = memoryview(region)
        content = workload.data("text", 4 * MIB, workload.random.Random(1))
        view[:] = content
        for number in (signal.SIGSTOP, signal.SIGCONT):
            os.kill(pager.pid, number)
            time.sleep(0.1)
        assert view == content
        # What a terminal sends to its foreground processes must not reach the pager.
        assert os.getsid(pager.pid) != os.getsid(0)
        assert os.getpgid(pager.pid) != os.getpgid(0)
        pager.check()


def test_signals() -> None:
    """The pager is out of the terminal's reach, and may stand still for a while."""
    run_child(pager_terminated)


def abort_handler() -> None:
    """What the child of test_abort_handler runs."""
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT})
    pager = uswap.Pager(limit=MIB, pool=16 * MIB)
    region = pager.region(4 * MIB)
    memoryview(region)[5] = 5
    evicted(region)
    os.kill(pager.pid, signal.SIGKILL)
    memoryview(region)[5]
    time.sleep(10)
    print("alive")


def test_abort_handler() -> None:
    """A program that ignores and blocks SIGABRT ends as well."""
    result = run_child(abort_handler, check=False, timeout=30)
    assert result.returncode == -signal.SIGABRT, result
    assert MESSAGE in result.stderr


def no_start() -> None:
    """What the child of test_no_start runs."""
    counts = []
    for k in range(4):
        # The last one ends too, since it does not know its arguments.
        for executable in ("/bin/false", "/nonexistent", "/bin/sleep"):
            try:
                uswap.Pager(limit=MIB, pool=16 * MIB, pager_timeout=5, python=executable)
            except uswap.PagerStartError as e:
                assert k or "did not become ready" in str(e) or executable in str(e), e
            else:
                raise AssertionError(executable)
        workload.collect()
        counts.append((len(workload.descriptors()), workload.mappings()))
    assert counts[1][0] == counts[3][0], counts
    assert counts[1][1] + 2 >= counts[3][1], counts


def test_no_start() -> None:
    """A pager process that does not start is PagerStartError, and leaves nothing."""
    run_child(no_start, python=["-X", "dev"])


def test_none_left() -> None:
    """There is no pager process of this run's tests left."""
    from child import SESSION

    marker = os.environ[SESSION]
    end = time.monotonic() + 10
    while (left := processes_with(SESSION, marker)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [one for one in left if "uswap.pager" in " ".join(one.cmdline())]
