# SPDX-License-Identifier: MIT
"""The guard and the signal chain, over a double of the core (tests/c/inline_double.c): memory whose faults are SIGBUS.

``USWAP_GUARD_ROUNDS=1000`` repeats each guarded call as often, each time with the memory out.
"""

from __future__ import annotations

import os
import random
import textwrap
from pathlib import Path

import pytest

from child import ChildResult, run_child
from compiled import ROOT, gcc
from compiled import check as checked

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


# ---- vectors, streams, and the others


def test_vectors(library: Path) -> None:
    """Vectors of files, pipes and sockets, the array of them in the memory too; each byte is right, and a vector of 200."""
    run(
        library,
        """
        opened()
        libc = ctypes.CDLL(None, use_errno=True)
        class iovec(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
        fd = os.memfd_create("file")
        for i in limits():
            data = random()
            parts = [m[j * 997 : (j + 1) * 997] for j in range(200)]
            want = data[: 200 * 997]
            out(); assert os.pwritev(fd, parts, 3) == len(want)
            assert os.pread(fd, len(want), 3) == want
            out(); os.lseek(fd, 3, 0); assert os.writev(fd, parts) == len(want)
            assert os.pread(fd, len(want), 3) == want
            m[:] = bytes(len(m)); out()
            assert os.preadv(fd, parts, 3) == len(want)
            out(); assert m[: len(want)] == want
            m[:] = bytes(len(m)); out(); os.lseek(fd, 3, 0)
            assert os.readv(fd, parts) == len(want)
            out(); assert m[: len(want)] == want
            a, b = socket.socketpair()
            out(); t = threading.Thread(target=lambda: a.sendmsg(parts, [], 0)); t.start()
            got = b.recv(len(want), socket.MSG_WAITALL)
            t.join(); assert got == want
            a.sendall(want[:5000]); m[:] = bytes(len(m)); out()
            n = b.recvmsg_into(parts)[0]
            out(); assert n > 0 and m[:n] == want[:n]
            array = (iovec * 3).from_address(base + 40 * BLOCK - 20)
            m[:] = data
            for j in range(3):
                array[j].base, array[j].len = base + j * 5000, 100
            out(); assert libc.pwritev(fd, ctypes.c_void_p(ctypes.addressof(array)), 3, ctypes.c_long(0)) == 300
            assert os.pread(fd, 300, 0) == data[:100] + data[5000:5100] + data[10000:10100]
            m[:] = data; out()
            mine, other = iovec(base + 100, 6000), iovec()
            target = ctypes.create_string_buffer(6000)
            other.base, other.len = ctypes.addressof(target), 6000
            out(); assert libc.process_vm_writev(os.getpid(), ctypes.byref(mine), 1, ctypes.byref(other), 1, 0) == 6000
            assert target.raw == data[100:6100]
        """,
    )


def test_streams(library: Path) -> None:
    """fread, fwrite, fputs, printf, and a buffer given to setvbuf."""
    run(
        library,
        """
        opened()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fopen.restype = ctypes.c_void_p
        libc.fread.restype = libc.fwrite.restype = ctypes.c_size_t
        P, Z = ctypes.c_void_p, ctypes.c_size_t
        for i in limits():
            data = random()
            f = P(libc.fopen(b"file", b"w+"))
            out(); assert libc.fwrite(P(base + 1), Z(3), Z(50000), f) == 50000
            libc.fflush(f)
            assert open("file", "rb").read() == data[1:150001]
            m[:] = bytes(len(m)); libc.rewind(f); out()
            assert libc.fread(P(base + 7), Z(1), Z(200000), f) == 150000
            out(); assert m[7:150007] == data[1:150001] and not any(m[150007:])
            libc.fclose(f)
            text = os.urandom(2 * BLOCK).hex().encode()
            m[:len(text) + 1] = text + bytes(1)
            for call in (lambda f: libc.fputs(P(base), f), lambda f: libc.fprintf(f, b"%s", P(base)),
                         lambda f: libc.dprintf(libc.fileno(f), b"%s", P(base))):
                f = P(libc.fopen(b"file", b"w"))
                out(); assert call(f) > 0
                libc.fclose(f)
                assert open("file", "rb").read() == text
            f = P(libc.fopen(b"file", b"r"))
            assert libc.setvbuf(f, P(base), 0, Z(BLOCK)) == 0
            got = ctypes.create_string_buffer(100)
            out(); assert libc.fread(got, Z(1), Z(100), f) == 100 and got.raw == text[:100]
            libc.fclose(f)
        os.unlink("file")
        """,
    )


def test_structures(library: Path) -> None:
    """Names, structures and sets in memory that is out, at a block's border: the same as in other memory."""
    run(
        library,
        """
        opened()
        libc = ctypes.CDLL(None, use_errno=True)
        P, Z, L = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long
        def place(at, data):
            m[at : at + len(data)] = data
            return P(base + at)
        def call(f, *args):
            out()
            n = f(*args)
            assert n >= 0, (f, ctypes.get_errno())
            assert lib.double_held() == 0
            return n
        def same(size, f):
            'What f writes, there and in other memory.'
            other = ctypes.create_string_buffer(size)
            m[BLOCK - 5 : BLOCK - 5 + size] = bytes(size)
            n = call(f, P(base + BLOCK - 5))
            assert f(other) == n
            out(); assert m[BLOCK - 5 : BLOCK - 5 + size] == other.raw, f
            return other.raw
        import select, struct
        os.mkdir("d"); open("d/name", "w").close()
        os.symlink("where", "d/link")
        for i in limits():
            number("double_limit").value = 8 # four structures across a border
            path = lambda text, at=9 * BLOCK - 3: place(at, text + bytes(1))
            same(144, lambda p: libc.stat(path(b"d/name"), p))
            same(144, lambda p: libc.lstat(path(b"d/link"), p))
            same(256, lambda p: libc.statx(-100, path(b"d/name"), 0, 0x7ff, p))
            same(390, lambda p: libc.uname(p))
            same(16, lambda p: libc.getrlimit(7, p))
            assert same(5, lambda p: libc.readlink(path(b"d/link"), p, Z(5))) == b"where"
            assert os.fsencode(os.getcwd()) in same(4096, lambda p: libc.getcwd(p, Z(4096)) and 1)
            same(128, lambda p: libc.sched_getaffinity(0, Z(128), p))
            fd = call(libc.open, path(b"d/name"), 2)
            assert libc.syscall(L(262), L(-100), path(b"d/name"), P(base + BLOCK - 9), L(0)) in (0,)
            same(36, lambda p: libc.ioctl(0, L(0x5401), p) and 0)
            read, write, writev = L(0), L(1), L(20)
            m[:] = data = os.urandom(len(m)); assert call(libc.syscall, write, L(fd), P(base), Z(len(m))) == len(m)
            assert os.pread(fd, len(m), 0) == data
            m[:] = bytes(len(m)); os.lseek(fd, 0, 0); assert call(libc.syscall, read, L(fd), P(base), Z(len(m))) == len(m)
            out(); assert m == data
            place(3 * BLOCK - 8, struct.pack("PNPN", base + 7, 5000, base + 90000, 5000))
            assert call(libc.syscall, writev, L(fd), P(base + 3 * BLOCK - 8), L(2)) == 10000
            want = bytes(m[7:5007]) + data[90000:95000]
            assert os.pread(fd, 10000, len(data)) == want
            p = path(b"user.test", 9 * BLOCK - 3); value = place(20 * BLOCK - 2, b"value")
            if libc.fsetxattr(fd, p, value, Z(5), 0) == 0:
                assert same(5, lambda p: libc.fgetxattr(fd, path(b"user.test"), p, Z(5))) == b"value"
            r, w = os.pipe()
            os.write(w, b"x" * 10)
            assert same(4, lambda p: libc.ioctl(r, L(0x541B), p))[:1] == bytes([10]) # FIONREAD
            assert same(8, lambda p: libc.poll(place(BLOCK - 5, struct.pack("ihh", r, 1, 0)), Z(1), 0) if p is not None and
                not isinstance(p, ctypes.Array) else libc.poll(ctypes.memmove(p, struct.pack("ihh", r, 1, 0), 8) and p, Z(1), 0))[6] == 1
            e = select.epoll(); event = place(30 * BLOCK - 7, struct.pack("=IQ", 1, 4711))
            call(libc.epoll_ctl, e.fileno(), 1, r, event)
            assert same(12, lambda p: libc.epoll_wait(e.fileno(), p, 1, 0)) == struct.pack("=IQ", 1, 4711)
            sets = place(40 * BLOCK - 3, (1 << r).to_bytes(128, "little"))
            assert call(libc.select, r + 1, sets, None, None, place(50 * BLOCK - 4, bytes(16))) == 1
            s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
            size = place(51 * BLOCK - 2, struct.pack("i", 16))
            call(libc.getsockname, s.fileno(), P(base + BLOCK - 5), size)
            assert m[BLOCK - 3 : BLOCK - 1] == s.getsockname()[1].to_bytes(2, "big")
            name = place(52 * BLOCK - 3, struct.pack("=H", 2) + s.getsockname()[1].to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8))
            c = socket.socket(); call(libc.connect, c.fileno(), name, 16)
            on = place(53 * BLOCK - 2, struct.pack("i", 1))
            call(libc.setsockopt, c.fileno(), 6, 1, on, 4)
            size = place(51 * BLOCK - 2, struct.pack("i", 4)); m[BLOCK - 2 : BLOCK + 2] = bytes(4)
            call(libc.getsockopt, c.fileno(), 6, 1, P(base + BLOCK - 2), size)
            assert m[BLOCK - 2] == 1
            queue = libc.msgget(0, 0o600)
            message = place(60 * BLOCK - 12, struct.pack("l", 7) + bytes(range(100)))
            call(libc.msgsnd, queue, message, Z(100), 0)
            m[60 * BLOCK - 12 : 60 * BLOCK + 96] = bytes(108)
            assert call(libc.msgrcv, queue, message, Z(100), L(0), 0) == 100
            out(); assert m[60 * BLOCK - 12 : 60 * BLOCK + 96] == struct.pack("l", 7) + bytes(range(100))
            libc.msgctl(queue, 0, None)
            m[:] = bytes(len(m)); call(libc.getrandom, P(base + 5), Z(len(m) - 10), 0)
            out(); assert m[:5] == bytes(5) and m[-5:] == bytes(5) and len(set(m[5:-5])) == 256
            for one in (r, w, fd): os.close(one)
            e.close(); s.close(); c.close()
        os.unlink("d/name"); os.unlink("d/link"); os.rmdir("d")
        """,
    )


def test_unchanged_python(library: Path) -> None:
    """NumPy's and pickle's files, with an unchanged CPython."""
    pytest.importorskip("numpy")
    run(
        library,
        """
        opened()
        import numpy as np, pickle
        a = np.frombuffer(m, np.float64)
        for i in limits():
            a[:] = np.random.default_rng(i).random(len(a))
            want = a.copy()
            out(); a.tofile("file"); assert open("file", "rb").read() == want.tobytes()
            a[:] = 0; out()
            assert (np.fromfile("file") == want).all()
            a[:] = want; out(); np.save("file.npy", a); assert (np.load("file.npy") == want).all()
            out()
            with open("file", "wb") as f:
                pickle.dump(a, f, protocol=5)
            with open("file", "rb") as f:
                assert (pickle.load(f) == want).all()
            out()
            with open("file", "wb") as f:
                f.write(a)
            a[:] = 0; out()
            with open("file", "rb") as f:
                assert f.readinto(a) == a.nbytes
            out(); assert (a == want).all()
        os.unlink("file"); os.unlink("file.npy")
        """,
    )


def test_cancelled(library: Path, tmp_path: Path) -> None:
    """A thread that is cancelled in a blocking read ends its hold."""
    source = tmp_path / "cancel.c"
    source.write_text(
        """
        #include <pthread.h>
        #include <unistd.h>
        static int fd;
        static void *run(void *p) { read(fd, p, 100); return p; }
        int cancelled(int pipe, void *p) {
            pthread_t t;
            void *result;
            fd = pipe;
            pthread_create(&t, NULL, run, p);
            usleep(100000);
            pthread_cancel(t);
            pthread_join(t, &result);
            return result == PTHREAD_CANCELED;
        }
        """
    )
    other = gcc(tmp_path / "cancel.so", "-shared", "-fPIC", "-Wno-unused-result", source)
    run(
        library,
        f"""
        opened()
        f = ctypes.CDLL({str(other)!r}).cancelled
        out()
        assert f(os.pipe()[0], ctypes.c_void_p(base)) == 1
        assert lib.double_held() == 0
        """,
    )


def test_ranges(library: Path) -> None:
    """What faults a range in does so piece by piece: mlock, mlock2, madvise to populate, also by number."""
    run(
        library,
        """
        opened()
        libc.mlock.argtypes = libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.mlock2.argtypes = libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        pages = (ctypes.c_ubyte * N)()
        def resident():
            assert libc.mincore(ctypes.c_void_p(base), ctypes.c_size_t(N * BLOCK), pages) == 0
            return sum(page & 1 for page in pages)
        for _ in limits():
            for call in (
                lambda: libc.mlock(base, N * BLOCK),
                lambda: libc.mlock2(base, N * BLOCK, 0),
                lambda: libc.madvise(base, N * BLOCK, 22),
                lambda: libc.madvise(base, N * BLOCK, 23),
                lambda: libc.syscall(ctypes.c_long(149), ctypes.c_void_p(base), ctypes.c_size_t(N * BLOCK)),
                lambda: libc.syscall(
                    ctypes.c_long(28), ctypes.c_void_p(base), ctypes.c_size_t(N * BLOCK), ctypes.c_long(23)
                ),
            ):
                data = random()
                assert resident() == 0
                assert call() == 0, os.strerror(ctypes.get_errno())
                assert lib.double_held() == 0 and resident() == N and m == data
                assert libc.munlock(base, N * BLOCK) == 0
        assert libc.madvise(base + 1, BLOCK, 22) == -1 and ctypes.get_errno() == 22
        assert libc.mlock2(base, N * BLOCK, 1) == 0
        """,
    )


# ---- is the list complete?

# System calls of libc's functions that take no memory of the caller's.
NO_MEMORY = """alarm arch_prctl brk clone close close_range dup dup2 dup3 epoll_create epoll_create1 eventfd2 exit exit_group fadvise64
    fallocate fanotify_init fchdir fchmod fchown fdatasync flock fsync ftruncate fsmount getegid geteuid getgid getpgid getpgrp
    getpid getppid getpriority getsid gettid getuid inotify_init inotify_init1 inotify_rm_watch ioperm iopl kill listen lseek
    mlockall mmap mprotect mremap msgget msync munlock munlockall munmap pause personality pidfd_getfd
    pidfd_open pkey_alloc pkey_free pkey_mprotect process_mrelease readahead remap_file_pages sched_get_priority_max
    sched_get_priority_min sched_getscheduler sched_yield semget setfsgid setfsuid setgid setns setpgid setpriority setregid
    setresgid setresuid setreuid setsid setuid shmat shmdt shmget shutdown socket sync sync_file_range syncfs tgkill
    tee timer_delete timer_getoverrun timerfd_create umask unshare vfork vhangup rt_sigreturn"""

# Functions that take memory and are not guarded.
REASONS = {
    "execve execveat fexecve": "arguments in paged memory: EFAULT; strings of programs are not paged",
    "herror abort pthread_create tcdrain": "hand over memory of their own",
    "getcontext setcontext swapcontext": "the signal mask of a context: the thread's own, which lacks SIGBUS",
    "__lll_lock_wait_private __lll_lock_wake_private __pthread_mutex_init __pthread_mutex_trylock __pthread_rwlock_rdlock "
    "__pthread_rwlock_tryrdlock __pthread_rwlock_unlock __pthread_rwlock_wrlock pthread_barrier_destroy pthread_barrier_wait "
    "pthread_cond_broadcast pthread_cond_clockwait pthread_cond_destroy pthread_cond_signal pthread_cond_timedwait pthread_cond_wait "
    "pthread_mutex_init pthread_mutex_setprioceiling pthread_mutex_trylock pthread_rwlock_clockrdlock pthread_rwlock_clockwrlock "
    "pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock pthread_rwlock_unlock "
    "pthread_rwlock_wrlock sem_post": "a lock in paged memory must be pinned: its futex is waited for without limit",
    "sched_getcpu clock_getcpuclockid faccessat seteuid setegid": "hand over memory of their own, or are guarded by name",
    "pthread_sigqueue sigqueue": "hand over memory of their own",
    "_Fork": "hands over memory of its own",
    "__libc_sigaction": "private to libc",
    "__close_nocancel __open_nocancel __open64_nocancel __read_nocancel __write_nocancel __pread64_nocancel __libc_fcntl64 "
    "__libc_pread __libc_pwrite": "private to libc's own libraries",
    "mq_open mq_notify": "names and structures of queues: EFAULT, and not data",
    "fsconfig mount ptrace reboot process_madvise kexec_load": "arguments of administration: EFAULT, and not data",
    "create_module get_kernel_syms query_module nfsservctl": "not in Linux any more",
    "posix_madvise": "gives no advice that faults memory in",
    "fcntl": "by commands",
}


def test_complete(library: Path) -> None:
    """Each function of libc that makes a system call with memory of the caller's is guarded, or named here with a reason."""
    import ctypes
    import re
    import subprocess

    path = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "libc.so.6" in line
    )
    numbers = {}
    for line in Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text().splitlines():
        if found := re.match(r"#define __NR_(\w+) (\d+)", line):
            numbers[int(found[2])] = found[1]
    functions: dict[tuple[int, int], set[str]] = {}
    listed = subprocess.run(
        ["readelf", "-Ws", "--dyn-syms", path], capture_output=True, text=True, check=True
    ).stdout
    for line in listed.splitlines():
        part = line.split()
        if len(part) >= 8 and part[3] == "FUNC" and part[6] != "UND":
            functions.setdefault((int(part[1], 16), int(part[2], 0)), set()).add(
                part[7].split("@")[0]
            )
    code = []
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    ).stdout
    for line in text.splitlines():
        if found := re.match(r"\s+([0-9a-f]+):\t(\S+)\s*(.*)", line):
            code.append((int(found[1], 16), found[2], found[3]))
    import bisect

    addresses = [one[0] for one in code]
    calls: dict[str, set[str]] = {}
    for (start, size), names in functions.items():
        number = None
        for _, word, operands in code[
            bisect.bisect_left(addresses, start) : bisect.bisect_left(addresses, start + size)
        ]:
            if found := re.match(r"\$0x([0-9a-f]+),%eax", operands) if word == "mov" else None:
                number = int(found[1], 16)
            elif word == "xor" and operands == "%eax,%eax":
                number = 0
            elif word == "syscall" and number is not None:
                for name in names:
                    calls.setdefault(name, set()).add(numbers.get(number, str(number)))
    assert len(calls) > 300
    core = ctypes.CDLL(os.fspath(library))
    core.us_guard_name.restype = ctypes.c_char_p
    guarded = set()
    while name := core.us_guard_name(len(guarded)):
        assert name.decode() not in guarded
        guarded.add(name.decode())
    excused = {name for names in REASONS for name in names.split()}
    missing = {
        name: which
        for name, which in calls.items()
        if which - set(NO_MEMORY.split()) and name not in guarded | excused
    }
    assert not missing, sorted(missing.items())
    fortified = {f"__{name}_chk" for name in guarded} & {
        name for names in functions.values() for name in names
    }
    assert fortified <= guarded, sorted(fortified - guarded)


BUILDS = {
    "sanitized": [
        f"-fsanitize={os.environ.get('USWAP_SANITIZE', 'address,undefined')}",
        "-fno-sanitize-recover=all",
    ],
    "released": ["-O2"],
}


@pytest.mark.parametrize("build", list(BUILDS))
def test_program(build: str, tmp_path: Path) -> None:
    """A program in C whose own entries are changed: files, and all that the chain promises, also beside a sanitizer's functions."""
    guard = gcc(
        tmp_path / "libguard.so",
        "-D_GNU_SOURCE",
        "-shared",
        "-fPIC",
        *BUILDS[build],
        *SOURCES,
        "-ldl",
    )
    program = gcc(
        tmp_path / "guard_test",
        "-D_GNU_SOURCE",
        "-Wno-deprecated-declarations",
        *BUILDS[build],
        ROOT / "tests/c/guard_test.c",
        guard,
        f"-Wl,-rpath,{tmp_path}",
    )
    for seed in ("1", str(random.randrange(2**32))):
        checked([program, seed])


def test_stack(tmp_path: Path) -> None:
    """The handler's own frame, before it asks the core, is below 512 bytes: alternate stacks are small."""
    gcc(
        tmp_path / "sigchain.o",
        "-D_GNU_SOURCE",
        "-O2",
        "-fstack-usage",
        "-c",
        ROOT / "csrc/sigchain.c",
    )
    (usage,) = tmp_path.glob("*.su")
    frames = {
        line.split("\t")[0].split(":")[-1]: int(line.split("\t")[1])
        for line in usage.read_text().splitlines()
    }
    assert frames["on_sigbus"] < 512
