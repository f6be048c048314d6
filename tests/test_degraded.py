# SPDX-License-Identifier: MIT
"""Without privilege: with faults by message everything works but system calls on evicted memory, and this is said."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import random
import socket
import tempfile
import threading
import warnings

import pytest

import uswap

import workload
from child import can_run_as, run_child
from workload import KIB, MIB, evicted

USER = "nobody"

needs_user = pytest.mark.skipif(
    (why := can_run_as(USER)) is not None, reason=f"can't test as {USER}: {why}"
)


def unprivileged() -> None:
    """What the children of test_unprivileged and test_user_mode run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pager = uswap.Pager(limit=MIB, pool=16 * MIB, faults="message")
    if pager.about()["uffd"] != "user-mode":
        print('"privileged"')
        pager.close()
        return
    (warning,) = caught
    assert warning.category is uswap.DegradedWarning, warning
    assert "EFAULT" in str(warning.message)
    assert "pinned" in str(warning.message)
    assert warning.filename == __file__, "the warning names its caller's line"
    content = random.Random(1).randbytes(256 * KIB)
    with pager, tempfile.TemporaryFile() as file:
        region = pager.region(256 * KIB)
        view = memoryview(region)
        view[:] = content
        evicted(region)
        assert view == content
        file.write(content[::-1])
        file.flush()
        fd = file.fileno()
        evicted(region)
        try:
            os.preadv(fd, [view], 0)
        except OSError as e:
            assert e.errno == errno.EFAULT, e
        else:
            raise AssertionError("a system call on evicted memory worked")
        try:
            os.pwrite(fd, view[:5000], MIB)
        except OSError as e:
            assert e.errno == errno.EFAULT, e
        else:
            raise AssertionError("a system call on evicted memory worked")
        assert view == content
        evicted(region)
        with region.pinned() as pinned:
            region.evict()  # stays
            assert os.preadv(fd, [pinned], 0) == len(content)
        evicted(region)
        assert view == content[::-1]
        with region.pinned(5000, 100_000) as pinned:
            assert os.pwrite(fd, pinned, 0) == 100_000
            assert os.pread(fd, 100_000, 0) == content[::-1][5000:105_000]
        evicted(region)
        # A buffer whose pages were never touched.
        fresh = mmap.mmap(-1, 256 * KIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with pager.wrap(fresh) as wrapped, wrapped.pinned() as pinned:
            assert os.preadv(fd, [pinned], 0) == len(content)
        assert fresh[100_000:] == content[::-1][100_000:]
        pager.check()
    assert view == content[::-1]
    print('"unprivileged"')


@needs_user
def test_unprivileged() -> None:
    """An ordinary user is told; system calls on evicted memory are EFAULT, and work where pinned()."""
    if run_child(unprivileged, user=USER).json == "privileged":
        pytest.skip("this system lets everybody have a full userfaultfd")


def test_user_mode() -> None:
    """The same when a privileged user asks for it."""
    found = run_child(unprivileged, env={"USWAP_UFFD": "user-mode"}, python=["-X", "dev"])
    assert found.json == "unprivileged"


def inline() -> str:
    """What the children of test_inline run: what an ordinary user's programs do with files and sockets."""
    import numpy as np

    warnings.simplefilter("error")
    rng = np.random.default_rng(1)
    with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
        want = rng.integers(0, 1000, 512 * KIB)
        array = pager.array(want)
        region = pager.region_of(array)
        assert region.faults == "inline"
        with tempfile.TemporaryDirectory() as where:
            evicted(region)
            np.save(f"{where}/a.npy", array)
            assert np.array_equal(np.load(f"{where}/a.npy"), want)
            evicted(region)
            array.tofile(f"{where}/a.bin")
            assert os.path.getsize(f"{where}/a.bin") == array.nbytes
            evicted(region)
            with open(f"{where}/a.pickle", "wb") as file:
                pickle.dump(array, file, protocol=5)
            with open(f"{where}/a.pickle", "rb") as file:
                assert np.array_equal(pickle.load(file), want)
            array[:] = 0
            evicted(region)
            with open(f"{where}/a.bin", "rb", buffering=0) as raw:
                view, done = memoryview(array).cast("B"), 0
                while done < len(view):
                    done += raw.readinto(view[done:])
            assert np.array_equal(array, want)
        array[:] = want
        evicted(region)
        ours, theirs = socket.socketpair()
        got = bytearray()

        def receive() -> None:
            while len(got) < array.nbytes and (part := theirs.recv(1 << 20)):
                got.extend(part)

        thread = threading.Thread(target=receive)
        thread.start()
        ours.sendall(array)
        thread.join()
        assert got == want.tobytes()
        evicted(region)
        assert pager.stats().inline_faults > 0
        return str(pager.about()["uffd"])


@needs_user
def test_inline() -> None:
    """By default an ordinary user's files and sockets take evicted memory as any other, and nothing warns."""
    run_child(inline, user=USER, env={"USWAP_UFFD": "user-mode"})


def stress(seconds: float) -> dict[str, object]:
    """What the child of test_stress runs."""
    warnings.simplefilter("ignore", uswap.DegradedWarning)
    return workload.stress(seconds, {}, limit=2 * MIB)


@needs_user
def test_stress() -> None:
    """Threads that thrash as an ordinary user find every byte right."""
    found = run_child(stress, args=[1.5], user=USER).json
    assert found["samples"] > 0
    assert found["most"] <= found["limit"] + workload.BATCH


def test_warning_as_error() -> None:
    """A program that makes the warning an error gets it raised, and nothing is left behind."""
    result = run_child(
        """
        import os, sys, uswap
        before = os.listdir("/proc/self/fd")
        try:
            uswap.Pager(limit="1MiB", pool="16MiB", uffd="user-mode", faults="message")
        except uswap.DegradedWarning:
            pass
        else:
            sys.exit("no warning")
        assert os.listdir("/proc/self/fd") == before
        """,
        python=["-W", "error"],
    )
    assert result.stderr == ""
