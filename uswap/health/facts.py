# SPDX-License-Identifier: MIT
"""What a machine has: its kernel, the limits of this process, and the libraries of codecs."""

from __future__ import annotations

import getpass
import os
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

from .. import codecs
from .._core import ffi, lib
from ..descriptors import SIGBUS
from ..sizes import available_memory

__all__ = ["Codec", "Facts", "gather"]


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
    has_sigbus: bool
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
    codecs: tuple[Codec, ...]
    shuffle: str
    """The instructions by which bytes are shuffled."""

    @property
    def uffd(self) -> str | None:
        """How a userfaultfd opens, best first: "device", "syscall", "user-mode"; None: not at all."""
        if self.device_errno == 0:
            return "device"
        if self.syscall_errno == 0:
            return "syscall"
        return "user-mode" if self.user_mode_errno == 0 else None


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
        has_sigbus=bool(report.features & SIGBUS),
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
        shuffle=codecs.shuffled_by(lib),
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
