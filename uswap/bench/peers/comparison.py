# SPDX-License-Identifier: MIT
"""Who is compared with whom, by which workloads, and what there is to choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..programs import LIBRARIES, PROGRAMS
from ..subject import WORKS

__all__ = ["GROUPS", "GROUP_WORK", "LEAST", "MARGIN", "MIB", "PEERS", "USUAL", "Peers"]

#: Peers by name, and what each is.
PEERS = {
    "uswap": "uswap",
    "zram": "the kernel's swap to compressed RAM",
    "naive": "a userfaultfd pager without uswap's design",
    "zswap": "the kernel's swap to a file, zswap before it",
    "memmap": "a mapped file",
    "plain": "memory without a limit",
}
#: Which of them are compared with each other.
GROUPS = {
    "pooled": ("uswap", "zram", "naive", "plain"),
    "disk": ("uswap", "zswap", "memmap", "plain"),
}
#: One call of a library each, which can't be cut short. From a disk, and where the kernel reads ahead at each random
#: access, it takes minutes to hours.
_CALLS = tuple(one for one in LIBRARIES if not one.startswith("numba"))
#: And by which workloads.
GROUP_WORK = {
    "pooled": WORKS,
    "disk": tuple(
        one for one in WORKS if one not in ("tenth", "random2", "write2", "loaded", *_CALLS)
    ),
}
#: What is measured where nothing is said: all but what programs do, which takes longer than the rest.
USUAL = tuple(one for one in WORKS if one not in PROGRAMS)
MIB = 1 << 20
LEAST = 2 * MIB  # of the limit: below, neither the kernel nor uswap has room to work in
MARGIN = 64 * MIB  # beyond the data, of what has to hold them


@dataclass(frozen=True)
class Peers:
    """What to measure.

    Attributes:
        peers: names of PEERS.
        work: names of subject.WORKS; "fill" comes always.
        data: names of common.DATA.
        over: how many times the limit the data are.
        size, disk_size: bytes of data, pooled and on a disk.
        seconds: of each workload and round; a sequential pass may take some times as long.
        directory: where files are made.
        blocks: bytes of uswap's blocks; each is a column. 0: uswap's default.
        faults: values of uswap's option of that name; each is a column. "": the default, and not passed on.
        fits: measure what fits as well.
    """

    peers: Sequence[str] = tuple(PEERS)
    work: Sequence[str] = USUAL
    data: Sequence[str] = ("int64",)
    over: Sequence[int] = (4,)
    size: int = 256 * MIB
    disk_size: int = 1024 * MIB
    rounds: int = 5
    seconds: float = 0.4
    directory: str = "/var/tmp"
    blocks: Sequence[int] = ()
    faults: Sequence[str] = ()
    fits: bool = True

    def groups(self) -> dict[str, list[str]]:
        """The peers of each group that is measured: one with a peer of its own, or the first."""
        found = {}
        for group, names in GROUPS.items():
            chosen = [name for name in names if name in self.peers]
            if set(chosen) - {"uswap", "plain"}:
                found[group] = chosen
        if not found:
            found["pooled"] = [name for name in GROUPS["pooled"] if name in self.peers]
        return found

    def size_of(self, group: str) -> int:
        """Bytes of data."""
        return self.size if group == "pooled" else self.disk_size

    def limit_of(self, group: str, over: int) -> int:
        """Bytes that may be resident."""
        return self.size_of(group) // over // MIB * MIB
