# SPDX-License-Identifier: MIT
"""Faults that the touching thread resolves by itself, and system calls on such memory."""

from __future__ import annotations

import signal
import textwrap

import pytest

from child import run_child

PRELUDE = """
import ctypes, errno, faulthandler, mmap, os, random, signal, socket, sys, threading, time
import uswap
KIB, MIB, PAGE = 1 << 10, 1 << 20, 4096
libc = ctypes.CDLL(None, use_errno=True)
def full(pager, size, **more):
    "A region of random bytes, all of which is out."
    region = pager.region(size, **more)
    content = random.Random(1).randbytes(size)
    with memoryview(region) as view:
        view[:] = content
    out(region)
    return region, content
def out(region):
    region.evict()
    states = region.residency()
    assert states.resident == 0, states
"""


def run(code: str, **more: object) -> str:
    """Run the code after the prelude; what it prints."""
    result = run_child(PRELUDE + textwrap.dedent(code), **more)  # type: ignore[arg-type]
    return result.stdout


# ---- the option


def test_option() -> None:
    """A pager's, a region's, an array's; each says what it is; one that is unknown is named."""
    run(
        """
        import numpy as np
        with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
            assert pager.region(MIB).faults == "inline"  # auto, by default
            assert pager.region(MIB, faults="message").faults == "message"
            assert pager.region_of(pager.zeros(MIB, np.uint8, faults="message")).faults == "message"
            assert pager.region_of(pager.full(MIB, 1, np.uint8, faults="inline")).faults == "inline"
            buffer = bytearray(MIB)
            with pager.wrap(buffer, faults="inline") as region:
                assert region.faults == "inline"
            for bad, kind in (("kernel", ValueError), (3, TypeError)):
                try:
                    pager.region(MIB, faults=bad)
                except kind as e:
                    assert "faults=" in str(e) and "accepted: auto, message, inline" in str(e), e
                else:
                    raise AssertionError(bad)
        os.environ["USWAP_FAULTS"] = "message"
        with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
            assert pager.region(MIB).faults == "message"
            assert pager.region(MIB, faults="auto").faults == "inline"
        with uswap.paged(bytearray(4 * MIB), limit=0.25, faults="inline") as paged:
            assert paged.regions[0].faults == "inline"
        """
    )


def test_counted() -> None:
    """Both ways in one pager: each fault is counted and timed, the inline ones also as such."""
    run(
        """
        with uswap.Pager(limit=MIB, pool=32 * MIB, block="4KiB", readahead=0) as pager:
            for how in ("inline", "message"):
                region, content = full(pager, 4 * MIB, faults=how)
                before = pager.stats()
                with memoryview(region) as view:
                    assert view == content
                after = pager.stats()
                faults = sum(after.faults.values()) - sum(before.faults.values())
                inline = after.inline_faults - before.inline_faults
                assert faults > 1000, (how, faults)  # the last may not be counted yet
                assert inline == (faults if how == "inline" else 0) or inline > faults * 0.9, (how, faults, inline)
                assert after.latency["pooled"].count > before.latency["pooled"].count
                out(region)
        """
    )


def test_runs() -> None:
    """While faults come in order, what follows comes along; not without read-ahead."""
    out = run(
        """
        for ahead in (0, MIB):
            with uswap.Pager(limit=MIB, pool=32 * MIB, block="4KiB", readahead=ahead) as pager:
                region, content = full(pager, 4 * MIB)
                before = pager.stats()
                with memoryview(region) as view:
                    assert view == content
                after = pager.stats()
                print(sum(after.faults.values()) - sum(before.faults.values()),
                      after.readahead_blocks - before.readahead_blocks)
        """
    )
    (alone, none), (few, many) = (map(int, line.split()) for line in out.splitlines())
    assert alone >= 1024
    assert none == 0
    assert few < 200
    assert few + many >= 1024


# ---- stacks, signals, forks


def test_small_stacks() -> None:
    """An alternate stack of what the kernel needs and 2 KiB is enough, and so is a thread's of 32 KiB."""
    run(
        """
        getauxval = libc.getauxval
        getauxval.restype = ctypes.c_ulong
        AT_MINSIGSTKSZ = 51
        size = (getauxval(AT_MINSIGSTKSZ) or 2048) + 2048
        class Stack(ctypes.Structure):
            _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
        with uswap.Pager(limit=MIB, pool=16 * MIB, codec="zstd") as pager:
            region, content = full(pager, 4 * MIB)
            # A page before it that must not be touched.
            area = mmap.mmap(-1, 16 * PAGE)
            base = ctypes.addressof(ctypes.c_char.from_buffer(area))
            assert libc.mprotect(ctypes.c_void_p(base), PAGE, 0) == 0
            assert size <= 15 * PAGE
            stack = Stack(base + PAGE, 0, size)
            assert libc.sigaltstack(ctypes.byref(stack), None) == 0, ctypes.get_errno()
            with memoryview(region) as view:
                assert view == content
            out(region)
            found = []
            def look():
                assert libc.sigaltstack(ctypes.byref(stack), None) == 0
                with memoryview(region) as view:
                    found.append(view[5 * PAGE] == content[5 * PAGE] and view[::PAGE] == content[::PAGE])
                libc.sigaltstack(ctypes.byref(Stack(None, 2, 0)), None)
            libc.sigaltstack(ctypes.byref(Stack(None, 2, 0)), None)
            threading.stack_size(32 * KIB)
            for _ in range(3):
                thread = threading.Thread(target=look)
                thread.start()
                thread.join()
                out(region)
            assert found == [True] * 3
        """
    )


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_real_sigbus(when: str) -> None:
    """A file that is cut short under a mapping ends the process as ever, with faulthandler's traceback if it is on."""
    result = run_child(
        PRELUDE
        + f"""
when = {when!r}
if when == "before":
    faulthandler.enable()
with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
    region, content = full(pager, 4 * MIB)
    if when == "after":
        faulthandler.enable()
    with memoryview(region) as view:
        assert view == content
    fd = os.memfd_create("file")
    os.ftruncate(fd, PAGE)
    mapped = mmap.mmap(fd, PAGE)
    os.ftruncate(fd, 0)
    print("so far", flush=True)
    mapped[0]
""",
        check=False,
        env={"PYTHONFAULTHANDLER": None},
    )
    assert result.returncode == -signal.SIGBUS, result
    assert result.stdout == "so far\n"
    assert ("Fatal Python error: Bus error" in result.stderr) == (when != "never")


def test_handler_of_python() -> None:
    """signal.signal(SIGBUS) gets what others send; faults stay ours, also in its handler."""
    run(
        """
        got = []
        with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
            region, content = full(pager, 4 * MIB)
            view = memoryview(region)
            signal.signal(signal.SIGBUS, lambda *_: got.append(view[:] == content))
            assert view[9 * PAGE] == content[9 * PAGE] and not got
            out(region)
            signal.raise_signal(signal.SIGBUS)
            assert got == [True]
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
            out(region)
            assert view == content
            assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            view.release()
        """
    )


def test_fork() -> None:
    """A child's touch is SIGSEGV as ever, its calls on memory of its own work; the parent goes on."""
    run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
            region, content = full(pager, 8 * MIB)
            view = memoryview(region)
            pid = os.fork()
            if pid == 0:
                faulthandler.disable()
                with open("/dev/null", "wb") as file:
                    file.write(bytes(MIB))
                view[0]
                os._exit(3)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSEGV
            assert view == content
            view.release()
        """
    )


# ---- system calls


def test_one_block_many_calls() -> None:
    """Sixty-four threads that wait in a call on one block do not disturb each other, nor who pages."""
    run(
        """
        with uswap.Pager(limit=2 * MIB, pool=16 * MIB, block="64KiB") as pager:
            region, content = full(pager, 8 * MIB)
            view = memoryview(region)
            pairs = [socket.socketpair() for _ in range(64)]
            def receive(k):
                assert pairs[k][0].recv_into(view[64 * k : 64 * k + 64]) == 64
            threads = [threading.Thread(target=receive, args=(k,)) for k in range(64)]
            for thread in threads:
                thread.start()
            time.sleep(0.2)
            region.evict()
            assert 0 < region.residency().resident <= 128 * KIB  # held, and its neighbour
            assert view[64 * KIB :] == content[64 * KIB :]
            for k, (_, theirs) in enumerate(pairs):
                theirs.sendall(bytes([k]) * 64)
            for thread in threads:
                thread.join()
            out(region)
            assert view[: 64 * 64] == b"".join(bytes([k]) * 64 for k in range(64))
            view.release()
        """,
        timeout=120,
    )


def test_released_while_a_call_holds() -> None:
    """A region ends while another thread waits in a call on it: nothing waits for that call, and its bytes arrive."""
    run(
        """
        with uswap.Pager(limit=16 * MIB, pool=16 * MIB) as pager:
            buffer = bytearray(random.Random(2).randbytes(4 * MIB))
            ours, theirs = socket.socketpair()
            for _ in range(3):
                region = pager.wrap(buffer)
                region.evict()
                thread = threading.Thread(target=ours.recv_into, args=(memoryview(buffer)[MIB : MIB + 10],))
                thread.start()
                time.sleep(0.1)
                region.release()
                again = pager.wrap(buffer)  # at the same place, and its blocks are held by nobody
                theirs.sendall(b"0123456789")
                thread.join()
                out(again)
                assert buffer[MIB : MIB + 10] == b"0123456789"
                again.release()
        """,
        timeout=60,
    )


def test_larger_than_the_limit() -> None:
    """A stream takes more than the limit in pieces; a message that can't be cut is ENOMEM."""
    run(
        """
        with uswap.Pager(limit=MIB, pool=32 * MIB) as pager:
            region, content = full(pager, 8 * MIB)
            view = memoryview(region)
            with open("/var/tmp", "rb", opener=lambda *_: os.open("/var/tmp", os.O_RDWR | os.O_TMPFILE)) as file:
                assert os.pwrite(file.fileno(), view, 0) == len(view)
                out(region)
                view[:] = bytes(len(view))
                out(region)
                assert os.preadv(file.fileno(), [view[: 3 * MIB], view[3 * MIB :]], 0) == len(view)
                assert view == content
            out(region)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                ours.send(view)
            except OSError as e:
                assert e.errno in (errno.ENOMEM, errno.EMSGSIZE), e
            else:
                raise AssertionError("a message of 8 MiB went")
            ours.send(view[100 : 100 + 20 * KIB])
            assert theirs.recv(MIB) == content[100 : 100 + 20 * KIB]
            view.release()
        """
    )


def test_readonly_buffer() -> None:
    """The kernel's EFAULT for memory that may not be written stays one, and is no signal."""
    run(
        """
        with uswap.Pager(limit=MIB, pool=16 * MIB) as pager:
            region, content = full(pager, 4 * MIB)
            view = memoryview(region)
            assert libc.mprotect(ctypes.c_void_p(region.address), PAGE, mmap.PROT_READ) == 0
            fd = os.memfd_create("file")
            os.write(fd, b"x" * PAGE)
            try:
                os.preadv(fd, [view[:100]], 0)
            except OSError as e:
                assert e.errno == errno.EFAULT, e
            else:
                raise AssertionError("read-only memory was written")
            assert os.pwrite(fd, view[:100], 0) == 100
            assert os.pread(fd, 100, 0) == content[:100]
            assert libc.mprotect(ctypes.c_void_p(region.address), PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
            view.release()
        """
    )


def test_auto_without_room() -> None:
    """Where the address space is limited auto takes no large part of it: it is message; inline is what is asked for."""
    out = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
        with uswap.Pager(limit=MIB, pool=8 * MIB) as pager:
            region, content = full(pager, 4 * MIB)
            print(region.faults)
            with memoryview(region) as view:
                assert view == content
            assert pager.region(MIB, faults="inline").faults == "inline"
        """
    )
    assert out.split() == ["message"]
