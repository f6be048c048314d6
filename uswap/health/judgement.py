# SPDX-License-Identifier: MIT
"""What each fact about a machine means."""

from __future__ import annotations

import errno
import shlex
import sys

from ..sizes import format_size
from .facts import Codec, Facts
from .finding import Finding, Status, describe_error

__all__ = ["judge"]

DEVICE = "/dev/userfaultfd"
_WHEELS = {"lz4": "lz4", "zstd": "zstandard"}


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
        Finding("shuffle", f"built in, by {facts.shuffle}"),
    ]


def _judge_kernel(facts: Facts) -> Finding:
    return Finding("kernel", f"Linux {facts.kernel}, {facts.machine}")


def _judge_uffd(facts: Facts) -> Finding:
    ways = (
        (f"device {DEVICE}", facts.device_errno),
        ("system call", facts.syscall_errno),
        ("user mode only", facts.user_mode_errno),
    )
    tried = "; ".join(f"{name}: {describe_error(code) if code else 'works'}" for name, code in ways)
    if facts.uffd in ("device", "syscall"):
        return Finding(
            "userfaultfd", f"by the {facts.uffd.replace('syscall', 'system call')} [{tried}]"
        )
    if facts.uffd == "user-mode" and facts.has_sigbus:
        return Finding("userfaultfd", f"unprivileged: user mode only, enough for inline [{tried}]")
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
        f"on oneself: {describe_error(facts.self_advice_errno)}",
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
        describe_error(facts.pidfd_errno),
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
        f"refused, {describe_error(facts.io_uring_errno)}{setting}: swap files are read and written by threads",
        Status.DEGRADED,
        "Only with a swap file: each read is handed to a thread and back, and a fault on what lies in the "
        "file takes a tenth to a fifth longer.",
        tuple(mend),
    )


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
