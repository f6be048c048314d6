# SPDX-License-Identifier: MIT
"""Sizes as people write them, and how much memory this process may use.

"Half the memory" means half of what the process may have. In a container that is less than the
host has, so every memory limit from the process's own cgroup up to the root counts, under cgroup v2
and v1, and the smallest wins.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import NamedTuple, SupportsIndex

__all__ = [
    "AvailableMemory",
    "Size",
    "SizeOrPart",
    "available_memory",
    "format_size",
    "parse_integer",
    "parse_size",
]

Size = SupportsIndex | str
SizeOrPart = SupportsIndex | str | float

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

# "k", "M" and "G" alone are refused: half of the world reads 1000, the other half 1024. "Gb" is
# refused because it means bits.
_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": TIB,
}
_UNITS.update({unit.lower(): factor for unit, factor in list(_UNITS.items())})

_TEXT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)", re.ASCII)


def parse_size(
    value: object,
    name: str,
    *,
    base: Callable[[], int] | None = None,
    minimum: int | None = None,
    maximum: int | None = None,
    multiple: int | None = None,
) -> int:
    """Return a size in bytes.

    Args:
        value: an integer number of bytes (NumPy's integers too); text such as ``"2GiB"``,
            ``"1.5 GB"``, ``"4096"`` or ``"4096B"``; or, with ``base``, a fraction in (0, 1], as a
            number or as text with a decimal point (``"0.25"``).
        name: what messages call the value: an argument's or an environment variable's name.
        base: called for the bytes that a fraction is a fraction of. Without it, fractions are
            refused.
        minimum: the smallest size accepted, in bytes.
        maximum: the largest size accepted, in bytes.
        multiple: the size must be a multiple of this many bytes. A fraction is rounded down to one.

    Raises:
        TypeError: the value is of a kind that cannot be a size.
        ValueError: the value is not a size, or is out of range.
    """
    accepted = _accepted(base is not None, minimum, maximum, multiple)
    wrong = f"{name}={value!r} is not a size"
    size: int
    if is_bool(value):
        raise TypeError(f"{wrong} but a bool; accepted: {accepted}")
    if isinstance(value, str):
        match = _TEXT.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"{wrong}; accepted: {accepted}")
        number, unit = match.groups()
        if unit:
            if unit not in _UNITS:
                raise ValueError(f"{wrong}: {_explain_unit(unit)}; accepted: {accepted}")
            size = int(Decimal(number) * _UNITS[unit])
        elif "." not in number:
            size = int(number)
        elif base is None:
            raise ValueError(f"{wrong}: it has no unit; accepted: {accepted}")
        else:
            size = _fraction(float(number), base, multiple, wrong, accepted)
    elif (integer := _index(value)) is not None:
        size = integer
    elif isinstance(value, numbers.Real):  # float, NumPy's floats, Fraction
        if base is None:
            raise TypeError(f"{wrong} but a {type(value).__name__}; accepted: {accepted}")
        size = _fraction(float(value), base, multiple, wrong, accepted)
    else:
        raise TypeError(f"{wrong} but a {type(value).__name__}; accepted: {accepted}")

    if size < 0:
        raise ValueError(f"{name}={value!r} is negative; accepted: {accepted}")
    meant = f"{name}={value!r}" if size == value else f"{name}={value!r} ({size} bytes)"
    if minimum is not None and size < minimum:
        raise ValueError(f"{meant} is too small; accepted: {accepted}")
    if maximum is not None and size > maximum:
        raise ValueError(f"{meant} is too large; accepted: {accepted}")
    if multiple is not None and size % multiple:
        raise ValueError(
            f"{meant} is not a multiple of {format_size(multiple)}; accepted: {accepted}"
        )
    return size


def is_bool(value: object) -> bool:
    """Say whether it is a truth value: Python's, or NumPy's, which may pass as a number."""
    # NumPy's type is called bool_ up to version 1, bool from 2 on.
    return type(value).__name__ in ("bool", "bool_")


def parse_integer(value: object, name: str, accepted: str = "int") -> int:
    """Return an integer of any type (NumPy's too) as Python's own. A truth value is none.

    Args:
        value: the integer.
        name: of the argument, for messages.
        accepted: what is, for messages.

    Raises:
        TypeError: it is of another kind.
    """
    integer = None if is_bool(value) else _index(value)
    if integer is None:
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; accepted: {accepted}")
    return integer


def _index(value: object) -> int | None:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _fraction(
    fraction: float, base: Callable[[], int], multiple: int | None, wrong: str, accepted: str
) -> int:
    if not 0 < fraction <= 1:  # NaN fails this too
        raise ValueError(f"{wrong}: a fraction is above 0 and at most 1; accepted: {accepted}")
    size = math.floor(base() * fraction)
    return size - size % multiple if multiple else size


def _explain_unit(unit: str) -> str:
    prefix = unit[0].upper()
    if unit.upper() in ("K", "M", "G", "T"):
        return f"{unit!r} alone may mean {prefix}B (1000) or {prefix}iB (1024)"
    if unit[0].upper() in "KMGT" and unit[1:] in ("b", "ib"):
        return f"{unit!r} means bits; bytes are {prefix}B or {prefix}iB"
    return f"unknown unit {unit!r}"


def _accepted(
    fractions: bool, minimum: int | None, maximum: int | None, multiple: int | None
) -> str:
    text = "bytes as an int, text such as '512MiB' or '2GB'"
    if fractions:
        text += ", a fraction in (0, 1] of the memory available"
    if multiple is not None:
        text += f", a multiple of {format_size(multiple)}"
    if minimum is not None and maximum is not None:
        text += f", from {format_size(minimum)} to {format_size(maximum)}"
    elif minimum is not None:
        text += f", at least {format_size(minimum)}"
    elif maximum is not None:
        text += f", at most {format_size(maximum)}"
    return text


def format_size(n: int) -> str:
    """Return a number of bytes for people to read: ``"1.5 GiB"``, ``"512 B"``.

    Binary units, at most one decimal. What is written without a decimal is exact.
    """
    if n < 0:
        return "-" + format_size(-n)
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        # Below 10240 TiB, 1023.96 KiB would be rounded to "1024.0 KiB": take the next unit.
        if n >= factor or n * 1024 >= factor * 1023.95:
            whole, rest = divmod(n, factor)
            return f"{whole} {unit}" if rest == 0 else f"{n / factor:.1f} {unit}"
    return f"{n} B"


class AvailableMemory(NamedTuple):
    """How much memory this process may use, and what says so."""

    bytes: int
    source: str
    """The file whose figure was the smallest, e.g. ``/sys/fs/cgroup/app/memory.max``."""


def available_memory(root: str | os.PathLike[str] = "/") -> AvailableMemory:
    """Return the smallest of the host's memory and all the cgroup limits on this process.

    Free memory plays no part: the figure is the same however busy the machine is.

    Args:
        root: where ``/proc`` and ``/sys`` are looked for; for tests.
    """
    root = Path(root)
    found = [_host_memory(root)]
    for path in _limit_files(root):
        text = _read(path)
        # "max" is cgroup v2's word for no limit; v1 has a number larger than any host.
        if text is not None and (text := text.strip()).isdecimal():
            shown = PurePosixPath("/") / path.relative_to(root)
            found.append(AvailableMemory(int(text), str(shown)))
    return min(found, key=lambda one: one.bytes)  # of equals the first: the host


def free_memory(root: str | os.PathLike[str] = "/") -> AvailableMemory:
    """Return how much more memory this process may take now, of the host's and of all its cgroups.

    What the page cache would give back counts as free.

    Args:
        root: where ``/proc`` and ``/sys`` are looked for; for tests.
    """
    root = Path(root)
    found = []
    if match := re.search(r"MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo") or ""):
        found.append(AvailableMemory(int(match[1]) * KIB, "/proc/meminfo"))
    for path in _limit_files(root):
        usage = "memory.usage_in_bytes" if path.name.endswith("_in_bytes") else "memory.current"
        limit, used = (_read(path) or "").strip(), (_read(path.parent / usage) or "").strip()
        if not (limit.isdecimal() and used.isdecimal()):
            continue
        cached = re.search(r"^inactive_file (\d+)$", _read(path.parent / "memory.stat") or "", re.M)
        free = int(limit) - int(used) + (int(cached[1]) if cached else 0)
        shown = PurePosixPath("/") / path.relative_to(root)
        found.append(AvailableMemory(max(0, free), str(shown)))
    return min(found, key=lambda one: one.bytes, default=available_memory(root))


def _host_memory(root: Path) -> AvailableMemory:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if match := re.fullmatch(r"MemTotal:\s+(\d+) kB", line.strip()):
            return AvailableMemory(int(match[1]) * KIB, "/proc/meminfo")
    return AvailableMemory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "sysconf")


def _limit_files(root: Path) -> Iterator[Path]:
    """Yield the files that may limit this process's memory, innermost cgroup first."""
    cgroups = (_read(root / "proc/self/cgroup") or "").splitlines()
    mounts = (_read(root / "proc/self/mountinfo") or "").splitlines()
    v1 = v2 = None
    for line in cgroups:  # hierarchy-ID:controllers:path, where the path may have colons too
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            v2 = path
        elif "memory" in controllers.split(","):
            v1 = path
    for line in mounts:
        # id parent major:minor root mountpoint options optional-fields... - type source options
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 6 or len(kind) < 3:
            continue
        mount_root, mount_point = _unescape(fields[3]), _unescape(fields[4])
        if kind[0] == "cgroup2" and v2 is not None:
            own, names = v2, ["memory.max", "memory.high"]
        elif kind[0] == "cgroup" and "memory" in kind[2].split(",") and v1 is not None:
            own, names = v1, ["memory.limit_in_bytes"]
        else:
            continue
        top = root / mount_point.lstrip("/")
        for directory in _up_to(top, _inside(own, mount_root)):
            for name in names:
                yield directory / name


def _inside(path: str, mount_root: str) -> PurePosixPath:
    """Return where a cgroup is below its mount point.

    A container may see only its own part of the hierarchy: then the mount's root is not "/", and
    the path may lie outside of it, or start with "/..". What can be seen is then the mount point.
    """
    pure = PurePosixPath(path)
    if ".." in pure.parts or not pure.is_relative_to(mount_root):
        return PurePosixPath()
    return pure.relative_to(mount_root)


def _up_to(top: Path, inside: PurePosixPath) -> Iterator[Path]:
    yield from (top / part for part in (inside, *inside.parents))


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes, such as ``\\040`` for a blank."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
