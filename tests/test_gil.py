# SPDX-License-Identifier: MIT
"""Faults of a thread that holds the GIL, and faults inside system calls, many times over.

Nobody but the pager process can serve them: were a thread of this interpreter needed, it would wait for
the GIL for ever.
"""

from __future__ import annotations

import os
import random
import socket
import tempfile

import numpy as np
import pytest

import uswap

import workload
from child import run_child
from workload import KIB, MIB, evicted

FAULTS_BY = ("inline", "message")

ROUNDS = 1000
SIZE = 64 * KIB
BLOCK = 16 * KIB


def _pager() -> uswap.Pager:
    # Without read-ahead each block is a fault of its own.
    return uswap.Pager(limit=MIB, pool=16 * MIB, block=BLOCK, readahead=0)


def hold_the_gil(how: str) -> None:
    """What the children of test_gil_held run."""
    with _pager() as pager:
        region = pager.region(SIZE)
        a = np.frombuffer(region, np.int64)
        rng = np.random.default_rng(1)
        view = memoryview(region)
        for k in range(ROUNDS):
            if k % 100 == 0:
                a[:] = rng.integers(0, 1000, len(a))
                model = a.copy()
                content = model.tobytes()
            evicted(region)
            if how == "bytes":
                assert bytes(view) == content
            elif how == "index":
                for at in range(k % 100, len(a), len(a) // 4):
                    assert a[at] == model[at]
            elif how == "tobytes":
                assert a.tobytes() == content
            elif how == "sum":
                assert a.sum() == model.sum()
            elif how == "compare":
                assert view == content
            else:  # store
                a[k % len(a)] = model[k % len(a)] = k
                content = model.tobytes()
        evicted(region)
        assert a.tobytes() == content
        faults = pager.stats().faults
        assert faults["pooled"] >= ROUNDS, faults


@pytest.mark.parametrize("how", ["bytes", "index", "tobytes", "sum", "compare", "store"])
def test_gil_held(how: str) -> None:
    """A thread that holds the GIL while it faults gets the right bytes, 1,000 times."""
    run_child(hold_the_gil, args=[how])


def system_calls(how: str) -> None:
    """What the children of test_system_call run."""
    rng = random.Random(1)
    source = rng.randbytes(4 * SIZE)
    with _pager() as pager, tempfile.TemporaryFile() as file:
        region = pager.region(SIZE)
        view = memoryview(region)
        fd = file.fileno()
        os.write(fd, source)
        left, right = socket.socketpair()
        right.settimeout(20)
        content = bytes(SIZE)
        for k in range(ROUNDS):
            at = rng.randrange(3 * SIZE)
            wanted = source[at : at + SIZE]
            evicted(region)
            if how == "preadv":
                # Two pieces, of which the second begins in the middle of a page.
                n = os.preadv(fd, [view[:5000], view[5000:]], at)
            elif how == "readinto":
                file.seek(at)
                n = file.readinto(view)
            elif how == "raw readinto":
                file.raw.seek(at)
                n = file.raw.readinto(view)
            elif how == "recv_into":
                left.sendall(wanted)
                n = 0
                while n < SIZE:
                    n += right.recv_into(view[n:])
                    if k % 10 == 0:
                        region.evict()
            elif how == "sendall":
                view[:] = wanted
                evicted(region)
                left.sendall(view)
                got = bytearray()
                while len(got) < SIZE:
                    got += right.recv(SIZE)
                assert got == wanted
                n = SIZE
            else:  # pwrite
                view[:] = wanted
                evicted(region)
                n = os.pwrite(fd, view, 5 * SIZE)
                assert os.pread(fd, SIZE, 5 * SIZE) == wanted
            assert n == SIZE
            content = wanted
            if k % 2:
                evicted(region)
            assert view == content
        left.close()
        right.close()


@pytest.mark.parametrize(
    "how", ["preadv", "readinto", "raw readinto", "recv_into", "sendall", "pwrite"]
)
def test_system_call(how: str) -> None:
    """A system call on evicted memory waits for it and gets the right bytes, 1,000 times."""
    run_child(system_calls, args=[how])


def gil_holders() -> None:
    """What the child of test_gil_holders runs."""
    threads = workload.Threads()
    with uswap.Pager(limit=MIB, pool=16 * MIB, block=4 * KIB) as pager:
        a = pager.array(np.arange(MIB // 2, dtype=np.int64))
        total = int(a.sum())
        region = pager.region_of(a)

        def read() -> None:
            while not threads.stop.is_set():
                assert int(a.sum()) == total
                assert bytes(memoryview(a)[1000:1010]) == np.arange(1000, 1010).tobytes()[:80]

        def evict() -> None:
            while not threads.stop.is_set():
                region.evict()

        for function in (read, read, evict, evict):
            threads.start(function)
        with threads.running():
            threads.stop.wait(1.5)
        pager.check()


def test_gil_holders() -> None:
    """Threads that fault under the GIL and threads that ask for evictions do not stop each other."""
    run_child(gil_holders)
