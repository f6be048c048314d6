# SPDX-License-Identifier: MIT
"""Paths that a user gives: what is wrong with one, in words, before the kernel says an errno."""

from __future__ import annotations

import errno
import os

__all__ = [
    "SWAP_MAGIC",
    "TRACE_MAGIC",
    "check_parent",
    "open_to_read",
    "path_of",
    "say",
    "what_it_is",
    "why_no_directory",
]

SWAP_MAGIC = b"uswapSG1"
TRACE_MAGIC = b"uswapTRC"
_KINDS = {
    SWAP_MAGIC: "is a swap file, which `uswap fsck` reads",
    TRACE_MAGIC: "is a trace, which `uswap trace show` reads",
}


def path_of(value: object, name: str) -> str:
    """Return a path as text.

    Raises:
        TypeError: it is none; names it.
    """
    try:
        path = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; accepted: a path, as text or pathlib.Path"
        )
    return path


def check_parent(path: str, name: str) -> None:
    """Look whether the directory is there in which a path is, or is to be.

    Args:
        path: a directory, which must exist if the path ends with a slash; or a file, new or not.
        name: of the argument, for messages.

    Raises:
        FileNotFoundError: a directory is missing; says which.
        NotADirectoryError: what should be a directory is none.
    """
    directory = path if path.endswith("/") else os.path.dirname(path) or "."
    if os.path.isdir(directory):
        return
    # The topmost that is missing, or what is in the way.
    at = "/" if directory.startswith("/") else ""
    for part in directory.split("/"):
        at = os.path.join(at, part)
        if at and not os.path.isdir(at):
            break
    accepted = "accepted: a directory that exists, or a file in one"
    if os.path.exists(at):
        raise NotADirectoryError(
            errno.ENOTDIR, f"{name}: {at!r} is not a directory; {accepted}", path
        )
    why = "is a link to nothing" if os.path.islink(at) else "does not exist"
    raise FileNotFoundError(errno.ENOENT, f"{name}: directory {at!r} {why}; {accepted}", path)


def why_no_directory(path: str) -> str | None:
    """Return why no file can be made in a directory; None if one can."""
    if not os.path.lexists(path):
        return "does not exist"
    if not os.path.isdir(path):
        return "is not a directory"
    if not os.access(path, os.W_OK | os.X_OK):
        return "can't be written to by this user"
    return None


def open_to_read(path: str, accepted: str) -> int:
    """Open a file that a user has named.

    Args:
        path: of a file or device.
        accepted: what should be there, for messages.

    Returns:
        A descriptor, read-only.

    Raises:
        OSError: it can't be opened, or is a directory; says what is accepted.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        why = "there is no such file" if e.errno == errno.ENOENT else e.strerror
        raise OSError(e.errno, f"{why}; accepted: {accepted}", path) from None
    if os.path.isdir(f"/proc/self/fd/{fd}"):
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, f"is a directory; accepted: {accepted}", path)
    return fd


def what_it_is(head: bytes, wanted: bytes, otherwise: str) -> str:
    """Return in words what a file is that is not the kind of ours that was wanted.

    Args:
        head: its first eight bytes or more, or all of it.
        wanted: the magic of the kind that was.
        otherwise: what is said of a file that is neither empty nor of another kind of ours.
    """
    if not head:
        return "is empty"
    for magic, words in _KINDS.items():
        if magic != wanted and head.startswith(magic):
            return words
    return otherwise


def say(error: OSError) -> str:
    """Return an error's words without its number: the file, then what is wrong with it."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"
