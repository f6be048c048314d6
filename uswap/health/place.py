# SPDX-License-Identifier: MIT
"""A directory that swap files are to lie in: what it has, and what that means."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..options import OPTIONS
from ..paths import why_no_directory
from ..sizes import format_size, parse_size
from ..swapfile import open_swap
from .finding import Finding, Status

__all__ = ["SWAP_TEST_SEGMENT", "SWAP_TEST_SIZE", "Place", "gather_place", "judge_place"]

SWAP_TEST_SIZE = 4 << 20  # and a pool of a quarter of it
SWAP_TEST_SEGMENT = 256 << 10


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
