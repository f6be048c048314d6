# SPDX-License-Identifier: MIT
"""What the system lets this process have, and which limit it is that a refusal comes from.

An errno tells neither. ENOMEM is RLIMIT_AS, RLIMIT_DATA, vm.max_map_count or strict overcommit far more
often than a lack of memory, and EAGAIN of a new thread or of madvise is one of them too.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

from .errors import PagerStartError, UnsupportedKernelError
from .sizes import format_size

__all__ = ["LIMITS", "address_space", "check", "explain", "refusal"]

PAGE = 4096

#: Errors that come from a limit. Of EPERM and ENOSYS the limit is a filter of system calls.
LIMITS = frozenset(
    {errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EFBIG, errno.EPERM, errno.ENOSYS}
)

_NEAR = 64  # mappings below the limit: what was wanted may have needed several


def address_space() -> int | None:
    """Bytes of address space that this process may take for memory; None: as much as the machine has."""
    found = [_soft(resource.RLIMIT_AS), _soft(resource.RLIMIT_DATA), _commit_limit()]
    return min((one for one in found if one is not None), default=None)


def explain(error: int, what: str, wanted: int = 0) -> str:
    """Return a message for an errno: what failed, how much was wanted, and what limits it.

    Args:
        error: the errno.
        what: what failed; a system call's name, or words.
        wanted: bytes of address space, or of a file; 0 if that says nothing.
    """
    text = f"{what}: {os.strerror(error)}"
    if wanted and error in (errno.ENOMEM, errno.EAGAIN, errno.EFBIG):
        text += f", {format_size(wanted)} wanted"
    if causes := list(_causes(error)):
        text += f"; limited by {', '.join(causes)}"
    elif error == errno.ENOMEM:
        text += "; it is more than the machine has of address space or memory"
    if error in (errno.EPERM, errno.ENOSYS):
        text += (
            "; refused perhaps by a container's filter of system calls (seccomp); `uswap doctor` says"
            " what works and what to change"
        )
    return text


def check(result: int, what: str, wanted: int = 0) -> int:
    """Return what a call of the core gave, which is -errno if the system refused it.

    Raises:
        UnsupportedKernelError, PagerStartError, OSError: as refusal() says.
    """
    if result < 0:
        raise refusal(-result, what, wanted)
    return result


def refusal(error: int, what: str, wanted: int = 0) -> Exception:
    """What a call that the system refuses is to the user, who is told by what limit."""
    if error in (errno.EPERM, errno.ENOSYS):
        return UnsupportedKernelError(error, explain(error, what))
    if error in LIMITS:
        return PagerStartError(explain(error, what, wanted))
    return OSError(error, f"{what}: {os.strerror(error)}")


def _causes(error: int) -> Iterator[str]:
    if error in (errno.ENOMEM, errno.EAGAIN):
        yield from _memory()
    if error == errno.EAGAIN:
        if os.geteuid() != 0:
            yield from _count(resource.RLIMIT_NPROC, "RLIMIT_NPROC (ulimit -u)", "threads")
        if _status("VmLck"):
            yield from _bytes(resource.RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK (ulimit -l)", "VmLck")
    if error == errno.EMFILE:
        yield from _count(resource.RLIMIT_NOFILE, "RLIMIT_NOFILE (ulimit -n)", "open files")
    if error == errno.ENFILE:
        yield f"fs.file-max, {_read('/proc/sys/fs/file-max').strip()} open files of the system"
    if error == errno.EFBIG:
        yield from _bytes(resource.RLIMIT_FSIZE, "RLIMIT_FSIZE (ulimit -f)")


def _memory() -> Iterator[str]:
    yield from _bytes(resource.RLIMIT_AS, "RLIMIT_AS (ulimit -v)", "VmSize")
    yield from _bytes(resource.RLIMIT_DATA, "RLIMIT_DATA (ulimit -d)", "VmData")
    used, most = _mappings(), int(_read("/proc/sys/vm/max_map_count") or 0)
    if 0 < most <= used + _NEAR:
        yield f"vm.max_map_count, {most} mappings, of which {used} are in use"
    if (commit := _commit_limit()) is not None:
        yield f"vm.overcommit_memory=2 (CommitLimit {format_size(commit)})"


def _bytes(limit: int, name: str, field: str = "") -> Iterator[str]:
    if (most := _soft(limit)) is not None:
        used = _status(field) if field else None
        yield f"{name}, {format_size(most)}" + (
            f", of which {format_size(used)} are in use" if used is not None else ""
        )


def _count(limit: int, name: str, unit: str) -> Iterator[str]:
    if (most := _soft(limit)) is not None:
        yield f"{name}, {most} {unit}"


def _soft(limit: int) -> int | None:
    most, _hard = resource.getrlimit(limit)
    return None if most == resource.RLIM_INFINITY else most


def _commit_limit() -> int | None:
    """Under strict overcommit all private memory counts, reserved or not."""
    if _read("/proc/sys/vm/overcommit_memory").strip() != "2":
        return None
    return _field(_read("/proc/meminfo"), "CommitLimit")


def _status(field: str) -> int | None:
    return _field(_read("/proc/self/status"), field)


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return None


def _mappings() -> int:
    # Piece by piece: where no mapping is left there is no memory for all of it at once.
    count = 0
    try:
        fd = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        while piece := os.read(fd, PAGE):
            count += piece.count(b"\n")
    finally:
        os.close(fd)
    return count


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 4 * PAGE).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
