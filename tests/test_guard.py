# SPDX-License-Identifier: MIT
"""The guard and the signal chain, over a double of the core (tests/c/inline_double.c): memory whose faults are SIGBUS.

``USWAP_GUARD_ROUNDS=1000`` repeats each guarded call as often, each time with the memory out.
"""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from child import ChildResult, run_child
from compiled import ROOT, gcc

SOURCES = [
    *sorted(ROOT.glob("csrc/guard*.c")),
    ROOT / "csrc/sigchain.c",
    ROOT / "tests/c/inline_double.c",
]
ROUNDS = os.environ.get("USWAP_GUARD_ROUNDS", "3")

# What each child begins with: `m`, memory of N blocks, that is `data`; out() takes all of it out, or fails if there is a hold.
PRELUDE = """
import ctypes, os, signal, socket, sys, threading
lib = ctypes.CDLL(sys.argv[1], use_errno=True)
rounds = int(sys.argv[2])
lib.double_new.restype = ctypes.c_void_p
for name in ("double_out", "double_held", "us_guard_changed"):
    getattr(lib, name).restype = ctypes.c_uint64
lib.us_guard_name.restype = ctypes.c_char_p
number = lambda name: ctypes.c_uint64.in_dll(lib, name)
N, BLOCK = 64, 4096
base = lib.double_new(N)
if not base:
    print("no userfaultfd with UFFD_FEATURE_SIGBUS")
    sys.exit(0)
m = memoryview((ctypes.c_ubyte * (N * BLOCK)).from_address(base)).cast("B")
libc = ctypes.CDLL(None, use_errno=True)
def out():
    assert lib.double_held() == 0
    lib.double_out()
def limits():
    'Once with room for all of it, once with room for three blocks.'
    for i in range(rounds):
        number("double_limit").value = N if i % 2 == 0 else 3
        yield i
def opened():
    assert lib.us_sigchain_open() == 0
    assert lib.us_guard_open() == 0
def random():
    data = os.urandom(len(m))
    m[:] = data
    out()
    return data
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guard, the chain and the double in one shared object, which is what the guard leaves alone."""
    out = tmp_path_factory.mktemp("guard") / "guard.so"
    return gcc(out, "-D_GNU_SOURCE", "-shared", "-fPIC", *SOURCES, "-ldl")


def run(
    library: Path, code: str, *, check: bool = True, env: dict[str, str | None] | None = None
) -> ChildResult:
    """Run the code after the prelude; skip where there is no userfaultfd."""
    code = PRELUDE + textwrap.dedent(code)
    result = run_child(code, args=[library, ROUNDS], check=check, env=env, timeout=120)
    if "no userfaultfd with" in result.stdout:
        pytest.skip(result.stdout.strip())
    return result


# ---- the mechanism


def test_open_close(library: Path) -> None:
    """Without the guard a call on memory that is out fails, with it not; opening twice is opening once; close undoes all."""
    run(
        library,
        """
        assert lib.us_sigchain_open() == 0
        data = random()
        fd = os.memfd_create("file")
        for _ in range(3):
            out()
            try:
                os.pwrite(fd, m, 0)
            except OSError as exc:
                assert exc.errno == 14
            else:
                raise AssertionError("memory that is out was written")
            assert lib.us_guard_open() == 0
            changed = lib.us_guard_changed()
            assert changed > 10
            assert lib.us_guard_open() == 0 and lib.us_guard_sweep() == 0
            assert lib.us_guard_changed() == changed
            out()
            assert os.pwrite(fd, m, 0) == len(m) and os.pread(fd, len(m), 0) == data
            lib.us_guard_close()
            assert lib.us_guard_changed() == 0
        """,
    )


def test_dlsym(library: Path) -> None:
    """What is looked up by name is guarded: ctypes finds ours, and of other names what it always found."""
    run(
        library,
        """
        plain = ctypes.cast(libc.getppid, ctypes.c_void_p).value
        opened()
        again = ctypes.CDLL(None, use_errno=True)
        assert ctypes.cast(again.getppid, ctypes.c_void_p).value == plain
        data = random()
        fd = os.memfd_create("file")
        assert again.write(fd, ctypes.c_void_p(base), ctypes.c_size_t(len(m))) == len(m)
        assert os.pread(fd, len(m), 0) == data
        assert not hasattr(again, "no_such_function")
        """,
    )


@pytest.mark.parametrize("bind", ["now", "lazy"])
@pytest.mark.parametrize("pic", ["-fplt", "-fno-plt"])
def test_dlopen(library: Path, bind: str, pic: str, tmp_path: Path) -> None:
    """What is loaded later is guarded, however it is bound, and by tables of pointers; its own functions stay its own."""
    source = tmp_path / "later.c"
    source.write_text(
        """
        #include <unistd.h>
        static long (*const table[])(int, const void *, unsigned long) = {(void *)write};
        long by_plt(int fd, const void *p, unsigned long n) { return write(fd, p, n); }
        long by_table(int fd, const void *p, unsigned long n) { return table[0](fd, p, n); }
        ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { (void)fd, (void)p, (void)n, (void)at; return 4711; }
        long own(void) { return pwrite(1, "", 0, 0); }
        """
    )
    later = gcc(
        tmp_path / "later.so",
        "-shared",
        "-fPIC",
        "-O2",
        pic,
        f"-Wl,-z,{bind}",
        "-Wl,-z,relro",
        source,
    )
    run(
        library,
        f"""
        opened()
        later = ctypes.CDLL({str(later)!r}, os.RTLD_DEEPBIND, use_errno=True)
        data = random()
        for f in (later.by_plt, later.by_table):
            out()
            fd = os.memfd_create("file")
            n = f(fd, ctypes.c_void_p(base), ctypes.c_size_t(len(m)))
            assert n == len(m), (f, n, ctypes.get_errno())
            assert os.pread(fd, len(m), 0) == data
        assert later.own() == 4711
        for line in open("/proc/self/maps"): # RELRO is protected again
            assert " rwxp " not in line
        """,
    )


def test_dlopen_runpath(library: Path, tmp_path: Path) -> None:
    """dlopen("name") from a library with a RUNPATH looks there, as without the guard."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "inner.c").write_text("int answer(void) { return 42; }\n")
    (tmp_path / "outer.c").write_text(
        '#include <dlfcn.h>\nint has(void) { return dlopen("libinner_of_test.so", RTLD_NOW) != 0; }\n'
    )
    gcc(inner / "libinner_of_test.so", "-shared", "-fPIC", tmp_path / "inner.c")
    outer = gcc(
        tmp_path / "outer.so", "-shared", "-fPIC", tmp_path / "outer.c", f"-Wl,-rpath,{inner}"
    )
    run(library, f"opened()\nassert ctypes.CDLL({str(outer)!r}).has() == 1")


def test_threads(library: Path) -> None:
    """Threads load objects, sweep and write at once; all are right."""
    run(
        library,
        """
        opened()
        data = random()
        number("double_limit").value = 8
        import importlib
        names = ["_decimal", "_elementtree", "_sqlite3", "_curses", "_asyncio", "audioop", "_lsprof", "_queue"]
        def load(names):
            for name in names:
                try:
                    importlib.import_module(name)
                except ImportError:
                    pass
        def sweep():
            for _ in range(200):
                assert lib.us_guard_sweep() >= 0
        def write():
            fd = os.memfd_create("file")
            for _ in range(50):
                assert os.pwrite(fd, m[:4 * BLOCK], 0) == 4 * BLOCK
                assert os.pread(fd, 4 * BLOCK, 0) == data[:4 * BLOCK]
        ts = [threading.Thread(target=load, args=(names[i::2],)) for i in (0, 1)]
        ts += [threading.Thread(target=f) for f in (sweep, sweep, write, write)]
        for t in ts: t.start()
        for t in ts: t.join()
        assert lib.double_held() == 0
        """,
    )


# ---- one buffer


def test_files(library: Path) -> None:
    """read, write, pread and pwrite of files are whole, also across the hold's limit and at odd ends."""
    run(
        library,
        """
        opened()
        fd = os.memfd_create("file")
        file = open(fd, "r+b", buffering=0)
        for i in limits():
            data = random()
            a, b = i * 37 % BLOCK, len(m) - i * 101 % BLOCK
            out(); assert os.pwrite(fd, m[a:b], 5) == b - a
            assert os.pread(fd, b - a, 5) == data[a:b]
            out(); os.lseek(fd, 5, 0); assert os.write(fd, m[a:b]) == b - a
            assert os.pread(fd, b - a, 5) == data[a:b]
            m[:] = bytes(len(m)); out()
            file.seek(5); assert file.readinto(m[a:b]) == b - a
            out(); assert m == bytes(a) + data[a:b] + bytes(len(m) - b)
            m[:] = bytes(len(m)); out()
            assert libc_later.pread(fd, ctypes.c_void_p(base + a), ctypes.c_size_t(b - a), ctypes.c_long(5)) == b - a
            out(); assert m == bytes(a) + data[a:b] + bytes(len(m) - b)
        """.replace(
            "file = open", "libc_later = ctypes.CDLL(None, use_errno=True)\n        file = open"
        ),
    )


def test_edges(library: Path) -> None:
    """Buffers that begin before the region or end behind it are whole too."""
    run(
        library,
        """
        opened()
        libc = ctypes.CDLL(None, use_errno=True)
        fd = os.memfd_create("file")
        for i in limits():
            data = random()
            for at, n in ((base - 100, 300), (base + len(m) - 100, 300), (base - 100, len(m) + 200)):
                out()
                assert libc.pwrite(fd, ctypes.c_void_p(at), ctypes.c_size_t(n), ctypes.c_long(0)) == n
                want = ctypes.string_at(at, n)
                assert os.pread(fd, n, 0) == want
        """,
    )


def test_sockets(library: Path) -> None:
    """sendall and recv_into of a stream; a datagram that can't be held whole is ENOMEM, and one that can goes whole."""
    run(
        library,
        """
        opened()
        for i in limits():
            data = random()
            a, b = socket.socketpair()
            t = threading.Thread(target=a.sendall, args=(m,)); t.start()
            got = b""
            while len(got) < len(data):
                got += b.recv(1 << 16)
            t.join()
            assert got == data
            m[:] = bytes(len(m)); out()
            t = threading.Thread(target=a.sendall, args=(data,)); t.start()
            done = 0
            while done < len(data):
                done += b.recv_into(m[done:])
            t.join(); out()
            assert m == data
            t = threading.Thread(target=a.sendall, args=(data[::-1],)); t.start()
            out(); assert b.recv_into(m, len(m), socket.MSG_WAITALL) == len(m)
            t.join(); out()
            assert m == data[::-1]
            a, b = socket.socketpair(type=socket.SOCK_DGRAM)
            out(); assert a.send(m[10:10000]) == 9990
            assert b.recv(20000) == data[::-1][10:10000]
            if number("double_limit").value == 3:
                out()
                try:
                    a.send(m[:5 * BLOCK])
                    raise AssertionError("half a datagram")
                except OSError as exc:
                    assert exc.errno == 12
            a.send(data[:8192]); m[:] = bytes(len(m)); out()
            assert b.recv_into(m[:8192]) == 8192
            out(); assert m[:8192] == data[:8192]
        """,
    )


def test_errno(library: Path) -> None:
    """A call's errno is its own, whatever the hold and its end did."""
    run(
        library,
        """
        opened()
        out()
        for f in (lambda: os.write(-1, m), lambda: os.pread(-1, 1, 0)):
            try:
                f()
                raise AssertionError("wrote")
            except OSError as exc:
                assert exc.errno == 9
        number("double_limit").value = 0
        out()
        try:
            os.write(1, m)
            raise AssertionError("held")
        except OSError as exc:
            assert exc.errno == 12
        """,
    )


# ---- the chain


def test_python_handler(library: Path) -> None:
    """signal.signal(SIGBUS) is the next in the chain; what it sets, and what it blocks, is what it is shown."""
    run(
        library,
        """
        opened()
        data = random()
        seen = []
        assert signal.signal(signal.SIGBUS, lambda *a: seen.append(a[0])) == signal.SIG_DFL
        out(); assert m == data
        os.kill(os.getpid(), signal.SIGBUS)
        assert seen == [signal.SIGBUS]
        assert signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()) == set()
        assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        out(); assert m == data       # though all is blocked
        os.kill(os.getpid(), signal.SIGBUS)
        assert seen == [signal.SIGBUS] and signal.SIGBUS in signal.sigpending()
        assert signal.SIGBUS in signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGBUS])
        assert seen == [signal.SIGBUS] * 2
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
        os.kill(os.getpid(), signal.SIGBUS)
        assert signal.sigwait([signal.SIGBUS]) == signal.SIGBUS
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        assert seen == [signal.SIGBUS] * 2
        signal.signal(signal.SIGBUS, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGBUS)
        out(); assert m == data
        lib.us_sigchain_close()
        assert signal.getsignal(signal.SIGBUS) == signal.SIG_IGN
        """,
        env={"PYTHONFAULTHANDLER": None},
    )


CUT = """
import mmap
def cut():
    'Touches a mapping whose file has become shorter.'
    fd = os.memfd_create("cut")
    os.ftruncate(fd, 8192)
    p = mmap.mmap(fd, 8192)
    os.ftruncate(fd, 0)
    return p[4096]
"""


@pytest.mark.parametrize("when", ["before", "after", "never"])
def test_real_fault(library: Path, when: str) -> None:
    """A SIGBUS that is not ours ends the process by SIGBUS, with faulthandler's traceback if that was on."""
    on = "import faulthandler\nfaulthandler.enable()\n"
    code = CUT + (on if when == "before" else "import faulthandler\nfaulthandler.disable()\n")
    code += "opened()\n" + (on if when == "after" else "")
    code += "data = random()\nassert m == data\nout()\nsys.stdout.flush()\ncut()\n"
    result = run(library, code, check=False, env={"PYTHONFAULTHANDLER": None})
    assert result.returncode == -7, result
    assert ("Bus error" in result.stderr and "in cut" in result.stderr) == (when != "never"), result
