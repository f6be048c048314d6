# SPDX-License-Identifier: MIT
"""What this machine has of what uswap needs: facts are gathered, then judged, then tried out.

The three are apart so that the judging can be tested with the facts of any machine:

    facts = gather()           asks the kernel and the file system; changes nothing
    findings = judge(facts)    pure: what each fact means, what it costs, what mends it
    test = self_test()         a region paged out and in, in a child process under a time limit

The same three for a directory that swap files are to lie in: gather_place(), judge_place(), and
self_test() with it.
"""

from __future__ import annotations

import enum
import errno
import getpass
import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import codecs
from ._core import ffi, lib
from .options import OPTIONS
from .paths import why_no_directory
from .sizes import available_memory, format_size, parse_size
from .swapfile import open_swap

__all__ = [
    "Facts",
    "Finding",
    "Place",
    "SelfTest",
    "Status",
    "gather",
    "gather_place",
    "judge",
    "judge_place",
    "self_test",
    "worst",
]

SELF_TEST_LIMIT = 20.0  # seconds
SELF_TEST_SIZE = 1 << 20
SWAP_TEST_SIZE = 4 << 20  # and a pool of a quarter of it
SWAP_TEST_SEGMENT = 256 << 10
START_GOAL = 300  # milliseconds in which a pager should be ready
DEVICE = "/dev/userfaultfd"


class Status(enum.IntEnum):
    """How bad it is; the exit status of `uswap doctor` is the worst of all."""

    OK = 0
    DEGRADED = 1
    FAILED = 2


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name, value: what, and what was found.
        cost: what it costs that it is so; empty when all is well.
        mend: commands that mend it, one way each; words in place of a command begin with "#".
    """

    name: str
    value: str
    status: Status = Status.OK
    cost: str = ""
    mend: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "status": self.status.name.lower(), "mend": list(self.mend)}


@dataclass(frozen=True)
class Codec:
    """A codec: where it is from, or (None) why not."""

    name: str
    origin: str | None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What a machine has. Errnos are 0 for what works."""

    kernel: str
    machine: str
    user: str
    root: bool
    in_container: bool
    device_errno: int
    syscall_errno: int
    user_mode_errno: int
    has_wp: bool
    has_move: bool
    has_poison: bool
    has_thread_id: bool
    self_advice_errno: int
    pidfd_errno: int
    features: int
    cpus: int
    memory: int
    memory_source: str
    address_space: int | None
    """RLIMIT_AS, None for no limit."""
    overcommit: int
    """vm.overcommit_memory."""
    thp: str
    thp_shmem: str
    io_uring_errno: int
    io_uring_disabled: int | None
    """kernel.io_uring_disabled; None where there is no such setting."""
    codecs: tuple[Codec, ...] = field(default=())
    shuffle: Codec = Codec("shuffle", None)

    @property
    def uffd(self) -> str | None:
        """How a userfaultfd opens, best first: "device", "syscall", "user-mode"; None: not at all."""
        if self.device_errno == 0:
            return "device"
        if self.syscall_errno == 0:
            return "syscall"
        return "user-mode" if self.user_mode_errno == 0 else None


@dataclass(frozen=True)
class Place:
    """A directory that swap files are to lie in.

    Attributes:
        path: the directory.
        error: why no swap file can be made there; the rest means nothing then.
        direct, why, in_ram, reserved: as of a SwapFile.
        free: bytes that there is room for.
        wanted: bytes of a swap file, where swap= is not given.
    """

    path: str
    error: str = ""
    direct: bool = False
    why: str = ""
    in_ram: bool = False
    reserved: bool = False
    free: int = 0
    wanted: int = 0


# ---- facts


def gather_place(path: str) -> Place:
    """Make a small swap file without a name in the directory, and look at it."""
    if (why := why_no_directory(path)) is not None:
        return Place(path, f"{why}; accepted: the directory that the swap file is to be in")
    wanted = next(option for option in OPTIONS if option.name == "swap").default
    try:
        room = os.statvfs(path)
        file = open_swap(path, SWAP_TEST_SIZE, segment=SWAP_TEST_SEGMENT)
    except OSError as e:
        return Place(path, e.strerror or str(e))
    try:
        return Place(
            path,
            direct=file.direct,
            why=file.why,
            in_ram=file.in_ram,
            reserved=file.reserved,
            free=room.f_bavail * room.f_frsize,
            wanted=parse_size(wanted, "swap"),
        )
    finally:
        file.close()


def gather() -> Facts:
    """Ask the running kernel and this process's surroundings."""
    disabled = _read("/proc/sys/kernel/io_uring_disabled")
    report = ffi.new("us_probe_report_t *")
    lib.us_probe_kernel(report)
    memory = available_memory()
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    return Facts(
        kernel=platform.release(),
        machine=platform.machine(),
        user=_user(),
        root=os.geteuid() == 0,
        in_container=_in_container(),
        device_errno=report.device_errno,
        syscall_errno=report.syscall_errno,
        user_mode_errno=report.user_mode_errno,
        has_wp=bool(report.has_wp),
        has_move=bool(report.has_move),
        has_poison=bool(report.has_poison),
        has_thread_id=bool(report.has_thread_id),
        self_advice_errno=report.self_advice_errno,
        pidfd_errno=report.pidfd_errno,
        features=report.features,
        cpus=len(os.sched_getaffinity(0)),
        memory=memory.bytes,
        memory_source=memory.source,
        address_space=None if address_space == resource.RLIM_INFINITY else address_space,
        overcommit=int(_read("/proc/sys/vm/overcommit_memory") or 0),
        thp=_chosen(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        thp_shmem=_chosen(_read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        io_uring_errno=-lib.us_probe_io_uring(),
        io_uring_disabled=int(disabled) if disabled else None,
        codecs=tuple(_codec(one) for one in codecs.load_all(lib)),
        shuffle=_codec(codecs.load_shuffle(lib)),
    )


def _codec(one: codecs.Loaded) -> Codec:
    return Codec(
        one.codec,
        one.candidate.origin if one.candidate else None,
        tuple(f"{candidate.origin}: {why}" for candidate, why in one.errors),
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in containers
        return str(os.geteuid())


def _in_container() -> bool:
    marks = ("/.dockerenv", "/run/.containerenv")
    return any(os.path.exists(mark) for mark in marks) or bool(
        os.environ.get("KUBERNETES_SERVICE_HOST")
    )


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _chosen(text: str | None) -> str:
    """The word in brackets: "always [madvise] never"."""
    for word in (text or "").split():
        if word.startswith("["):
            return word.strip("[]")
    return "unknown"


# ---- judgements


def worst(findings: Sequence[Finding]) -> Status:
    """The worst status among them."""
    return max((finding.status for finding in findings), default=Status.OK)


def judge(facts: Facts) -> list[Finding]:
    """Say of each fact what it means."""
    return [
        _judge_kernel(facts),
        _judge_uffd(facts),
        *_judge_features(facts),
        _judge_advice(facts),
        _judge_pidfd(facts),
        _judge_cpus(facts),
        Finding(
            "memory", f"{format_size(facts.memory)} for this process (from {facts.memory_source})"
        ),
        *_judge_address_space(facts),
        _judge_huge_pages(facts),
        _judge_io_uring(facts),
        *(_judge_codec(codec) for codec in facts.codecs),
        _judge_shuffle(facts.shuffle),
    ]


def _error(code: int) -> str:
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"


def _judge_kernel(facts: Facts) -> Finding:
    return Finding("kernel", f"Linux {facts.kernel}, {facts.machine}")


def _judge_uffd(facts: Facts) -> Finding:
    ways = (
        (f"device {DEVICE}", facts.device_errno),
        ("system call", facts.syscall_errno),
        ("user mode only", facts.user_mode_errno),
    )
    tried = "; ".join(f"{name}: {_error(code) if code else 'works'}" for name, code in ways)
    if facts.uffd in ("device", "syscall"):
        return Finding(
            "userfaultfd", f"by the {facts.uffd.replace('syscall', 'system call')} [{tried}]"
        )
    if facts.uffd == "user-mode":
        return Finding(
            "userfaultfd",
            f"unprivileged: user mode only [{tried}]",
            Status.DEGRADED,
            "A system call on evicted memory (read, write, send, ...) fails with EFAULT in place of "
            "waiting, unless region.pinned() holds the range. Everything else works.",
            _mend_uffd(facts),
        )
    if facts.syscall_errno == errno.ENOSYS and facts.user_mode_errno == errno.ENOSYS:
        cost = "This kernel was built without userfaultfd: nothing can be paged."
        return Finding(
            "userfaultfd",
            f"none [{tried}]",
            Status.FAILED,
            cost,
            ("# a kernel with CONFIG_USERFAULTFD=y, as the usual distributions have it",),
        )
    return Finding(
        "userfaultfd",
        f"none [{tried}]",
        Status.FAILED,
        "Nothing can be paged.",
        _mend_uffd(facts),
    )


def _mend_uffd(facts: Facts) -> tuple[str, ...]:
    """Ways to a full userfaultfd, the narrowest first."""
    mend = []
    missing = facts.device_errno in (errno.ENOENT, errno.ENXIO, errno.EPERM)
    if facts.in_container and missing:
        mend.append(f"docker run --device {DEVICE} ...   # on the host; podman takes the same")
    if facts.device_errno == errno.EACCES:
        user = shlex.quote(facts.user)
        mend.append(f"sudo setfacl -m u:{user}:rw {DEVICE}   # until the next boot")
        rule = f'KERNEL=="userfaultfd", OWNER="{facts.user}", MODE="0600"'
        mend.append(
            f"echo {shlex.quote(rule)} | sudo tee /etc/udev/rules.d/60-userfaultfd.rules"
            "   # from the next boot on"
        )
    if facts.user_mode_errno == errno.EPERM:  # no sysctl forbids that; a filter does
        mend.append(
            "docker run --security-opt seccomp=PROFILE.json ...   # Docker's default profile with "
            "userfaultfd added to the calls allowed"
        )
    elif not facts.root:
        mend.append(
            "sudo sysctl vm.unprivileged_userfaultfd=1   # for all users, until the next boot"
        )
    return tuple(mend) or ("# run with the capability CAP_SYS_PTRACE",)


def _judge_features(facts: Facts) -> list[Finding]:
    if facts.uffd is None:
        return []
    found = []
    if not facts.has_wp:
        found.append(
            Finding(
                "write protection",
                "missing",
                Status.FAILED,
                "A block could change while it is copied out; uswap refuses to work so.",
                ("# Linux 5.7 or newer",),
            )
        )
    if not facts.has_move:
        found.append(
            Finding(
                "UFFDIO_MOVE",
                "missing",
                Status.DEGRADED,
                "Blocks leave by write-protecting and copying, which costs more system calls a block.",
                ("# Linux 6.8 or newer",),
            )
        )
    if not facts.has_thread_id:
        found.append(
            Finding(
                "thread ids",
                "missing",
                Status.DEGRADED,
                "The pager can't follow the faulting thread to its CPU; a fault may take ten times as "
                "long.",
                ("# Linux 4.14 or newer",),
            )
        )
    names = [
        name
        for name, has in (
            ("write protection", facts.has_wp),
            ("MOVE", facts.has_move),
            ("thread ids", facts.has_thread_id),
            ("POISON", facts.has_poison),
        )
        if has
    ]
    return [
        Finding("features", f"{', '.join(names) or 'none'} (mask {facts.features:#x})"),
        *found,
    ]


def _judge_advice(facts: Facts) -> Finding:
    if facts.self_advice_errno == 0:
        return Finding("process_madvise", "on oneself: works")
    return Finding(
        "process_madvise",
        f"on oneself: {_error(facts.self_advice_errno)}",
        Status.DEGRADED,
        "Clean blocks are dropped one by one, each with a TLB flush of its own: slower by far while "
        "other threads run.",
        ("# Linux 6.13 or newer, and a seccomp profile that allows process_madvise",),
    )


def _judge_pidfd(facts: Facts) -> Finding:
    if facts.pidfd_errno == 0:
        return Finding("pidfd", "works")
    return Finding(
        "pidfd",
        _error(facts.pidfd_errno),
        Status.FAILED,
        "Neither process would notice the other's death.",
        ("# Linux 5.3 or newer, and a seccomp profile that allows pidfd_open",),
    )


def _judge_cpus(facts: Facts) -> Finding:
    if facts.cpus > 1:
        return Finding("CPUs", f"{facts.cpus} for this process")
    return Finding(
        "CPUs",
        "1 for this process",
        Status.DEGRADED,
        "Compression and read-ahead take their time from the program instead of running beside it.",
        ("# give the process a second CPU (taskset, cpuset, docker run --cpuset-cpus 0,1)",),
    )


def _judge_address_space(facts: Facts) -> list[Finding]:
    found = []
    if facts.address_space is not None:
        found.append(
            Finding(
                "address space",
                f"limited to {format_size(facts.address_space)} (ulimit -v)",
                Status.DEGRADED,
                "Regions take their whole size of it, and the pager process some hundred "
                "times its pool, with memory only for what the pool holds; beyond the limit they can't be made.",
                ("ulimit -v unlimited   # where the hard limit allows it",),
            )
        )
    if facts.overcommit == 2:
        found.append(
            Finding(
                "overcommit",
                "vm.overcommit_memory=2",
                Status.DEGRADED,
                "Regions count with their whole size against the commit limit, resident or not; large "
                "ones can't be made.",
                ("sudo sysctl vm.overcommit_memory=0",),
            )
        )
    return found


def _judge_huge_pages(facts: Facts) -> Finding:
    value = f"{facts.thp} (shared memory: {facts.thp_shmem})"
    if facts.thp_shmem not in ("always", "force"):
        return Finding("huge pages", value)
    return Finding(
        "huge pages",
        value,
        Status.DEGRADED,
        "The pool takes memory by 2 MiB, so it may take more than its objects need.",
        ("echo never | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled",),
    )


def _judge_io_uring(facts: Facts) -> Finding:
    setting = (
        ""
        if facts.io_uring_disabled is None
        else f", kernel.io_uring_disabled={facts.io_uring_disabled}"
    )
    if facts.io_uring_errno == 0:
        return Finding("io_uring", f"works: swap files are read and written by it{setting}")
    if facts.io_uring_disabled:
        mend = ["sudo sysctl kernel.io_uring_disabled=0   # for all users, until the next boot"]
    elif facts.io_uring_errno == errno.ENOSYS and not facts.in_container:
        mend = ["# a kernel with CONFIG_IO_URING=y, and no filter of system calls that hides it"]
    elif facts.io_uring_errno == errno.ENOMEM:  # before Linux 5.12 rings count as locked memory
        mend = ["ulimit -l unlimited   # where the hard limit allows it"]
    else:
        mend = [
            "docker run --security-opt seccomp=PROFILE.json ...   # Docker's default profile with "
            "io_uring_setup, io_uring_enter and io_uring_register added to the calls allowed"
        ]
    return Finding(
        "io_uring",
        f"refused, {_error(facts.io_uring_errno)}{setting}: swap files are read and written by threads",
        Status.DEGRADED,
        "Only with a swap file: each read is handed to a thread and back, and a fault on what lies in the "
        "file takes a tenth to a fifth longer.",
        tuple(mend),
    )


def judge_place(place: Place) -> list[Finding]:
    """Say what it means for a swap file to lie there."""
    if place.error:
        return [
            Finding(
                "swap file",
                f"{place.path}: {place.error}",
                Status.FAILED,
                "No swap file can be made there.",
                ('# another directory, on a local disk: Pager(swapfile="/var/tmp")',),
            )
        ]
    return [_judge_direct(place), _judge_room(place)]


def _judge_direct(place: Place) -> Finding:
    if place.in_ram:
        return Finding(
            "swap file",
            f"{place.path}: in RAM (tmpfs)",
            Status.DEGRADED,
            "What goes to the file frees no memory.",
            ('# a directory on a disk: Pager(swapfile="/var/tmp")',),
        )
    if place.direct:
        return Finding("swap file", f"{place.path}: O_DIRECT works, {place.why}")
    return Finding(
        "swap file",
        f"{place.path}: no O_DIRECT, {place.why}",
        Status.DEGRADED,
        "It is read and written through the page cache, which is dropped at once: every byte is copied "
        "once more, a write waits for the disk, and some segments take RAM meanwhile.",
        (
            "# a directory on a local ext4, xfs or btrfs without encryption, compression or data=journal",
        ),
    )


def _judge_room(place: Place) -> Finding:
    free = f"{format_size(place.free)} free"
    wanted = format_size(place.wanted)
    if place.free < place.wanted and place.reserved:
        fits = max(0, place.free - place.free // 10) >> 20
        return Finding(
            "room",
            f"{free}; a swap file takes {wanted} by default",
            Status.DEGRADED,
            "It is reserved at once, so Pager() raises OSError unless swap= is smaller.",
            (f'# Pager(swapfile={place.path!r}, swap="{fits}MiB")',) if fits >= 8 else (),
        )
    if not place.reserved:
        return Finding(
            "room",
            f"{free}, which can't be reserved",
            Status.DEGRADED,
            "The disk may fill up under the swap file; blocks stay in the pool then, until there is room "
            "again.",
            ("# a file system that has fallocate: ext4, xfs, btrfs",),
        )
    return Finding("room", f"{free}; a swap file takes {wanted} by default, reserved at once")


_WHEELS = {"lz4": "lz4", "zstd": "zstandard"}


def _judge_codec(codec: Codec) -> Finding:
    name = f"codec {codec.name}"
    if codec.origin is not None:
        return Finding(name, codec.origin)
    why = "; ".join(codec.errors) or "not found"
    if codec.name == "lz4":
        cost = "It is the default: Pager() works only with another, named by codec= or USWAP_CODEC."
    else:
        cost = f"Pager(codec={codec.name!r}) can't be used."
    mend = f"{shlex.quote(sys.executable)} -m pip install {_WHEELS.get(codec.name, codec.name)}"
    return Finding(name, f"missing ({why})", Status.DEGRADED, cost, (mend,))


def _judge_shuffle(shuffle: Codec) -> Finding:
    """An extra: without it nothing is wrong, but if it is there and can't be used."""
    if shuffle.origin is not None:
        return Finding("shuffle", shuffle.origin)
    mend = f"{shlex.quote(sys.executable)} -m pip install 'blosc2>=4'"
    gain = (
        "arrays of numbers would take about half the room in the pool (int64 below 1000: ratio 4.5 in place of "
        "2.3), and be decompressed two to three times as fast"
    )
    if not shuffle.errors:
        return Finding("shuffle", f"not installed; with it {gain} ({mend})")
    why = "; ".join(shuffle.errors)
    return Finding(
        "shuffle",
        f"can't be used ({why})",
        Status.DEGRADED,
        f"Blocks are compressed as they are; else {gain}.",
        (mend.replace("install", "install --force-reinstall"),),
    )


# ---- trying it


@dataclass(frozen=True)
class SelfTest:
    """How it went.

    Attributes:
        error: empty when a region went out and came back unchanged.
        start_ms: until the pager was ready.
        system_call_errno: of a system call on evicted memory.
    """

    error: str = ""
    start_ms: float = 0.0
    fault_us: float = 0.0
    uffd: str = ""
    take: str = ""
    drop: str = ""
    codec: str = ""
    system_call_errno: int = 0
    io: str = ""
    stored: int = 0
    """Bytes that went to the swap file and came back, where it is tested with one."""

    def judge(self, name: str = "self-test") -> Finding:
        """Say what it means; `name` is what was tested."""
        if self.error:
            return Finding(
                name,
                self.error,
                Status.FAILED,
                "Paging does not work here.",
                (
                    "# mend what is above; if nothing is, please report this with `uswap doctor --json`",
                ),
            )
        if self.stored:
            return Finding(
                name,
                f"{format_size(self.stored)} went to the swap file by {self.io} and came back "
                f"unchanged, {self.fault_us:.0f} µs a fault on average",
            )
        value = (
            f"{format_size(SELF_TEST_SIZE)} went out and came back unchanged; pager ready in "
            f"{self.start_ms:.0f} ms, {self.fault_us:.0f} µs a fault on average "
            f"({self.uffd}, {self.take}, {self.drop}, {self.codec})"
        )
        if self.start_ms > START_GOAL:
            value += (
                f"; a start should take less than {START_GOAL} ms: the first one often does not"
            )
        if self.system_call_errno and self.uffd != "user-mode":
            return Finding(
                name,
                value,
                Status.FAILED,
                f"A system call on evicted memory gave {_error(self.system_call_errno)}.",
            )
        return Finding(name, value)


def self_test(
    facts: Facts,
    *,
    swapfile: str = "",
    limit: float = SELF_TEST_LIMIT,
    command: Sequence[str] | None = None,
) -> SelfTest:
    """Page a region out and in, in a child process that is killed at the limit.

    Args:
        facts: for the codec to use.
        swapfile: a directory for a swap file that most of it has to go through.
        limit: seconds.
        command: what to run in place of the real test; for tests.
    """
    if command is None:
        ready = [codec.name for codec in facts.codecs if codec.origin is not None]
        codec = "lz4" if "lz4" in ready or not ready else ready[0]
        path = [one for one in sys.path if isinstance(one, str)]  # an import passes by what is not
        start = f"import sys; sys.path[:] = {path!r}; from uswap.health import _child; _child()"
        command = [sys.executable, "-c", start, codec if ready else "none", swapfile]
    ours = {option.env for option in OPTIONS}
    environ = {name: value for name, value in os.environ.items() if name not in ours}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        start_new_session=True,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _end(process)
        return SelfTest(error=f"no answer within {limit:g} s: a fault was not served")
    except BaseException:  # such as KeyboardInterrupt
        _end(process)
        raise
    if process.returncode != 0:
        return SelfTest(error=_why(process.returncode, err))
    answer = json.loads(out.splitlines()[-1])
    return SelfTest(**answer)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the child; its pager sees that, and ends by itself."""
    process.kill()
    process.communicate()


def _why(status: int, err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    if status < 0:
        return f"the child was ended by {signal.Signals(-status).name}{': ' if lines else ''}" + (
            lines[-1] if lines else ""
        )
    return lines[-1] if lines else f"the child ended with status {status}"


def _child() -> None:
    """The self-test itself; prints a SelfTest's fields as JSON."""
    import warnings

    from .client import Pager

    warnings.simplefilter("ignore")  # that it is degraded is what the doctor says
    sys.stdout.write(json.dumps(_round_trip(Pager, *sys.argv[1:])) + "\n")


def _round_trip(make: Any, codec: str, swapfile: str) -> Mapping[str, Any]:
    size = SWAP_TEST_SIZE if swapfile else SELF_TEST_SIZE
    options = {"limit": "16MiB", "pool": "16MiB", "codec": codec, "readahead": 0, "block": 4096}
    if swapfile:
        options |= {
            "pool": size // 4,
            "swapfile": swapfile,
            "swap": 4 * size,
            "segment": SWAP_TEST_SEGMENT,
        }
    begin = time.perf_counter()
    with make(**options) as pager:
        start_ms = (time.perf_counter() - begin) * 1000
        if swapfile:
            pattern = os.urandom(size)  # does not compress, so the pool does not hold it
        else:
            pattern = bytes(range(251)) * (size // 251 + 1)
            pattern = b"".join(  # no block is like another, nor one repeated word
                i.to_bytes(8, "little") + pattern[i : i + 4088] for i in range(size // 4096)
            )
        region = pager.region(size)
        with memoryview(region) as view:
            view[:] = pattern
            region.evict()
            where = region.residency()
            if where.resident and not swapfile:
                return {"error": f"{where.resident} bytes did not leave"}
            if swapfile and not where.stored:
                return {"error": "nothing was written to the swap file"}
            call = _system_call(view[:4096])
            begin = time.perf_counter()
            back = view.tobytes()  # holds the GIL, as most of Python does
            fault_us = (time.perf_counter() - begin) * 1e6 / (size // 4096)
            if back != pattern:
                return {"error": "the bytes that came back are not those that went"}
        about = pager.about()
        region.close()
    return {
        "start_ms": start_ms,
        "fault_us": fault_us,
        "uffd": about["uffd"],
        "take": about["take"],
        "drop": about["drop"],
        "codec": about["codec_from"],
        "system_call_errno": call,
        "io": about["io"],
        "stored": where.stored,
    }


def _system_call(evicted: memoryview) -> int:
    """Write evicted memory to a pipe; the errno, 0 if it works."""
    with evicted:
        reader, writer = os.pipe()
        try:
            os.write(writer, evicted)
        except OSError as exc:
            return exc.errno or errno.EIO
        finally:
            os.close(reader)
            os.close(writer)
    return 0
