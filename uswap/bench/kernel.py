# SPDX-License-Identifier: MIT
"""The kernel's own paging, set up for a benchmark and undone after it.

Three things, each a context manager: a memory cgroup with a limit, swap to compressed RAM (zram), and
swap to a file with zswap before it. They are the whole machine's, not a process's, so all that is
changed is put back in reverse order however the benchmark ends, SIGINT and SIGTERM included; a signal
that comes in the middle of a change is heard when the change is complete. Only SIGKILL leaves things
behind: :func:`foreign_swap` then says what is on, and the next run refuses to mix its figures with it.

All of it needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .._core import lib
from ..sizes import format_size

__all__ = [
    "NAME",
    "Cgroup",
    "Unavailable",
    "Zram",
    "Zswap",
    "cgroup",
    "foreign_swap",
    "settings",
    "shielded",
    "terminable",
    "why_no_cgroup",
    "why_no_zram",
    "why_no_zswap",
    "zram",
    "zswap",
    "zswap_pool",
]

#: What cgroups and files of this module are called, with a number behind.
NAME = "uswap-peers"

PAGE = 4096
CGROUPS = Path("/sys/fs/cgroup")
ZRAM_CONTROL = Path("/sys/class/zram-control")
ZSWAP = Path("/sys/module/zswap/parameters")
COMPRESSORS = ("lz4", "lzo-rle", "lzo")  # of zswap, the first that the kernel has
COUNT = 0.05  # seconds
SLACK = 1 << 20  # bytes over a cgroup's limit, for a moment
GONE = 10.0  # seconds for the kernel to let go of something

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_numbers = itertools.count()


class Unavailable(OSError):
    """This machine has not what was asked for; the message says what and why."""


# ---- signals


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM an exception (SystemExit with status 143), so that what was set up is undone.

    Outside of the main thread, which alone hears signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Undo:
    """Steps and what undoes them. A step and its undoing are never torn apart by a signal."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def step(self, do: Callable[[], object], undo: Callable[[], object]) -> None:
        """Do it, and undo it at the end."""
        with shielded():
            do()
            self._steps.append(undo)

    def __enter__(self) -> _Undo:
        return self

    def __exit__(self, *_: object) -> None:
        """Undo all, last first, also when one of them fails; then raise the first failure."""
        failures = []
        with shielded():
            while self._steps:
                try:
                    self._steps.pop()()
                except OSError as exc:
                    failures.append(exc)
        if failures:
            raise failures[0]


def _retry(do: Callable[[], object]) -> None:
    """Do it again while the kernel says that it is busy, for a time."""
    end = time.monotonic() + GONE
    while True:
        try:
            do()
            return
        except OSError as exc:
            if exc.errno not in (errno.EBUSY, errno.EAGAIN) or time.monotonic() > end:
                raise
        time.sleep(0.02)


# ---- swap


def _libc(call: str, *arguments: bytes | int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments) != 0:
        number = ctypes.get_errno()
        shown = " ".join(os.fsdecode(one) for one in arguments if isinstance(one, bytes))
        raise OSError(number, f"{call} {shown}: {os.strerror(number)}")


def _make_swap(path: Path) -> None:
    """Write what mkswap writes: one page that says how many others there are."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        pages = os.lseek(fd, 0, os.SEEK_END) // PAGE
        header = bytearray(PAGE)
        struct.pack_into("<III", header, 1024, 1, pages - 1, 0)  # version, last page, bad pages
        header[1036:1052] = os.urandom(16)  # UUID
        header[-10:] = b"SWAPSPACE2"
        os.pwrite(fd, header, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def foreign_swap() -> list[str]:
    """Say what the machine swaps to now."""
    with open("/proc/swaps", encoding="utf-8", errors="replace") as file:
        return [line.split()[0] for line in file.readlines()[1:]]


def _swapped_on(undo: _Undo, path: Path) -> None:
    _make_swap(path)
    name = os.fsencode(path)
    undo.step(lambda: _libc("swapon", name, 0), lambda: _libc("swapoff", name))


def settings(directory: str) -> str:
    """Say how the kernel is set to swap, and to read ahead on the disk of a directory."""
    vm = Path("/proc/sys/vm")
    found = [f"{name} {(vm / name).read_text().strip()}" for name in ("swappiness", "page-cluster")]
    device = os.stat(directory).st_dev
    ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if ahead.exists():
        found.append(f"the disk's read-ahead {format_size(int(ahead.read_text()) << 10)}")
    return ", ".join(found)


# ---- a memory cgroup


@dataclass(frozen=True)
class Cgroup:
    """A memory cgroup that is there now.

    Attributes:
        version: 1 or 2.
        path: its directory.
    """

    version: int
    path: Path
    _counted: _Counted | None = None

    @property
    def resumed(self) -> int:
        """How often a process had found no room, and was let try again."""
        return self._counted.resumed if self._counted else 0

    @property
    def procs(self) -> str:
        """The file that takes a process in which writes its number there."""
        return str(self.path / "cgroup.procs")


def _memory_root() -> tuple[int, Path]:
    """The version of cgroups that limits memory here, and the directory where one is made.

    Raises:
        Unavailable: there is none, or it is not ours to use.
    """
    if os.geteuid() != 0:
        raise Unavailable("a memory cgroup needs root")
    for version, root, sign in (
        (1, CGROUPS / "memory", "memory.limit_in_bytes"),
        (2, CGROUPS, "cgroup.controllers"),
    ):
        if (root / sign).exists():
            if not os.access(root, os.W_OK):
                raise Unavailable(f"no memory cgroup: {root} is read-only")
            if version == 2 and "memory" not in (root / sign).read_text().split():
                raise Unavailable(f"no memory cgroup: {root / sign} lacks memory")
            return version, root
    raise Unavailable(f"no memory cgroup: neither version 1 nor 2 is mounted at {CGROUPS}")


class _Counted:
    """Has the kernel count a cgroup's pages anew: 20 times a second, and whenever it says out of memory.

    Reclaim decides by counts which the kernel brings up to date every two seconds. A small cgroup is
    turned over more often than that (one of 4 MiB in 25 ms): then the count says that there are inactive pages
    enough when there are none, so none are made, reclaim finds nothing, and the cgroup is out of memory, though
    there is swap enough (seen with Linux 6.18, with zram and zswap, a limit of 4 to 256 MiB). To read the
    statistics brings the counts up to date.

    How often is often enough depends on what else the machine has to do. So version 1 is told not to kill: a
    thread that faults waits, this is told of it, has the pages counted, and lets the thread try again.
    Version 2 can't be told so, and a process may still be killed.

    Args:
        path: of the cgroup.
        version: of cgroups.
        limit: in bytes.
    """

    def __init__(self, path: Path, version: int, limit: int) -> None:
        self._statistics = path / "memory.stat"
        self._limits = path / ("memory.limit_in_bytes" if version == 1 else "memory.max")
        self._limit = limit
        self._version = version
        self._slack = 0  # over the limit now
        self._end = self._told = -1
        self._thread = threading.Thread(target=self._run, name="uswap-counted")
        self.resumed = 0

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._end, self._told], [], [], COUNT)
            if self._end in ready:
                return
            self._statistics.read_bytes()
            if self._told in ready:
                os.eventfd_read(self._told)
                self.resumed += 1
                if self._slack:
                    time.sleep(COUNT)  # room over the limit grows by a page at a time
                self._raise()
            if self._slack:
                with contextlib.suppress(OSError):  # busy: it can't reclaim so much just now
                    self._limits.write_text(str(self._limit))
                    self._slack = 0

    def _raise(self) -> None:
        """Give more room, even if for a moment: it makes the kernel wake who waits for it.

        A limit that is not higher than before wakes nobody.
        """
        slack = self._slack + PAGE if self._slack else SLACK
        while True:
            try:
                self._limits.write_text(str(self._limit + slack))
            except OSError as e:
                if e.errno != errno.EBUSY:
                    raise
                slack *= 2  # that much is in use, and none of it could be reclaimed
            else:
                self._slack = slack
                return

    def start(self) -> None:
        """Set the limit, and begin."""
        self._limits.write_text(str(self._limit))
        self._end, self._told = os.eventfd(0), os.eventfd(0)
        if self._version == 1:
            control = self._limits.with_name("memory.oom_control")
            control.write_text("1")
            with control.open("rb") as file:
                registered = self._limits.with_name("cgroup.event_control")
                registered.write_text(f"{self._told} {file.fileno()}")
        self._thread.start()

    def stop(self) -> None:
        """End."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        os.close(self._end)
        os.close(self._told)


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Cgroup]:
    """Make a memory cgroup; `limit` is in bytes. It goes when its last process has.

    Swap is not limited. Of zswap's compressed copies version 2 takes account, version 1 does not.
    While it is there the kernel is made to keep its counts of the cgroup's pages up to date. With version 1
    the kernel kills nothing there: a process that has really no room stands still.

    Raises:
        Unavailable: there is no memory cgroup here, or it is not ours to use.
    """
    version, root = _memory_root()
    path = root / f"{NAME}-{os.getpid()}-{next(_numbers)}"
    with _Undo() as undo:
        if version == 2:
            control = root / "cgroup.subtree_control"
            if "memory" not in control.read_text().split():
                undo.step(
                    lambda: control.write_text("+memory"),
                    lambda: control.write_text("-memory"),
                )
        undo.step(path.mkdir, lambda: _retry(path.rmdir))
        counted = _Counted(path, version, limit)
        undo.step(counted.start, counted.stop)
        yield Cgroup(version, path, counted)


def why_no_cgroup() -> str | None:
    """Say why :func:`cgroup` would not work here; None where it would."""
    try:
        with cgroup(1 << 30):
            return None
    except OSError as exc:
        return str(exc)


# ---- zram


@dataclass(frozen=True)
class Zram:
    """A zram device that is swapped to."""

    name: str
    compressor: str

    @property
    def statistics(self) -> str:
        """The file with bytes before compression, after, and of RAM in use, in this order."""
        return f"/sys/block/{self.name}/mm_stat"


@contextlib.contextmanager
def zram(size: int, compressor: str = "lz4") -> Iterator[Zram]:
    """Swap to a new zram device of so many bytes; zswap, which would stand before it, is off meanwhile.

    Raises:
        Unavailable: there is no zram, or it is not ours to use.
    """
    why = why_no_zram()
    if why is not None:
        raise Unavailable(why)
    with _Undo() as undo:
        if (ZSWAP / "enabled").exists() and (ZSWAP / "enabled").read_text().strip() != "N":
            _set_parameter(undo, "enabled", ("N",))
        number = -1

        def add() -> None:
            nonlocal number
            number = int((ZRAM_CONTROL / "hot_add").read_text())

        undo.step(
            add, lambda: _retry(lambda: (ZRAM_CONTROL / "hot_remove").write_text(str(number)))
        )
        device = Path(f"/sys/block/zram{number}")
        try:
            (device / "comp_algorithm").write_text(compressor)
        except OSError:
            known = (device / "comp_algorithm").read_text().strip()
            raise Unavailable(f"zram has no {compressor} here; it has {known}") from None
        (device / "disksize").write_text(str(size))
        _swapped_on(undo, Path(f"/dev/zram{number}"))
        yield Zram(f"zram{number}", compressor)


def why_no_zram() -> str | None:
    """Say why :func:`zram` would not work here; None where it should."""
    if os.geteuid() != 0:
        return "zram needs root"
    if not ZRAM_CONTROL.exists() and shutil.which("modprobe"):
        subprocess.run(
            ["modprobe", "zram", "num_devices=0"], capture_output=True, timeout=60, check=False
        )
    if not ZRAM_CONTROL.exists():
        return "the kernel has no zram (modprobe zram)"
    if not os.access(ZRAM_CONTROL / "hot_add", os.R_OK) or not os.access(
        ZRAM_CONTROL / "hot_remove", os.W_OK
    ):
        return f"{ZRAM_CONTROL} can't be used"
    return None


# ---- zswap


@dataclass(frozen=True)
class Zswap:
    """Swap to a file, with zswap before it.

    Attributes:
        compressor: that is in use.
        pool: bytes of RAM that zswap may use, at most.
    """

    file: Path
    compressor: str
    pool: int

    @staticmethod
    def held() -> tuple[int, int]:
        """Bytes that zswap holds, before compression, and bytes of RAM they take."""
        found = {}
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name in ("Zswap", "Zswapped"):
                    found[name] = int(value.split()[0]) << 10
        return found["Zswapped"], found["Zswap"]


def zswap_pool(percent: int = 1) -> int:
    """Bytes of RAM that zswap may use, of which it is told as a percentage."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * percent // 100


@contextlib.contextmanager
def zswap(directory: str, size: int, *, percent: int = 1) -> Iterator[Zswap]:
    """Swap to a new file of so many bytes, with zswap before it.

    Args:
        percent: of the machine's RAM that zswap may use.

    Raises:
        Unavailable: there is no zswap, or it is not ours to use.
    """
    why = why_no_zswap()
    if why is not None:
        raise Unavailable(why)
    with _Undo() as undo:
        for name, values in (
            ("max_pool_percent", (str(percent),)),
            ("compressor", COMPRESSORS),
            ("enabled", ("Y",)),
        ):
            _set_parameter(undo, name, values)
        path = Path()

        def make() -> None:
            nonlocal path
            handle, name = tempfile.mkstemp(prefix=f"{NAME}-", suffix=".swap", dir=directory)
            path = Path(name)
            try:
                # No holes: the kernel refuses them.
                error = lib.us_file_reserve(handle, size)
                if error < 0:
                    path.unlink()
                    raise OSError(
                        -error,
                        f"a swap file of {format_size(size)} in {directory}: {os.strerror(-error)}",
                    )
            finally:
                os.close(handle)

        undo.step(make, lambda: path.unlink())
        _swapped_on(undo, path)
        compressor = (ZSWAP / "compressor").read_text().strip()
        yield Zswap(path, compressor, zswap_pool(percent))


def _set_parameter(undo: _Undo, name: str, values: tuple[str, ...]) -> None:
    """Give a parameter of zswap the first of some values that the kernel takes."""
    file = ZSWAP / name
    before = file.read_text().strip()
    for value in values:
        try:
            undo.step(lambda value=value: file.write_text(value), lambda: file.write_text(before))  # type: ignore[misc]
            return
        except OSError:
            pass
    raise Unavailable(f"zswap takes none of {', '.join(values)} as {name}")


def why_no_zswap() -> str | None:
    """Say why :func:`zswap` would not work here; None where it should."""
    if os.geteuid() != 0:
        return "zswap needs root"
    if not ZSWAP.exists():
        return "the kernel has no zswap"
    if not os.access(ZSWAP / "enabled", os.W_OK):
        return f"{ZSWAP} is read-only"
    with open("/proc/meminfo", encoding="ascii") as file:
        if "Zswapped:" not in file.read():
            return "the kernel does not say what zswap holds (Linux 5.19)"
    return None
