# SPDX-License-Identifier: MIT
"""One peer with its data and its limit, set up to be measured."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...sizes import format_size
from .. import kernel
from .comparison import GROUP_WORK, MARGIN, MIB, Peers

__all__ = ["Case", "Column", "cases_of", "columns_of", "data_file"]

PLAIN = 0.4  # of the time of a workload is enough for memory without a limit
SEGMENT = MIB  # of uswap's swap file


@dataclass(frozen=True)
class Column:
    """One uswap.

    Attributes:
        name: what it is called in the table.
        block: bytes of its blocks; 0: the default.
        faults: its option of that name; "": the default.
    """

    name: str
    block: int = 0
    faults: str = ""

    def options(self) -> dict[str, Any]:
        """Of its pager: what was asked for, so that all else is a user's default."""
        chosen: dict[str, Any] = {"block": self.block, "faults": self.faults}
        return {name: value for name, value in chosen.items() if value}


@dataclass(frozen=True)
class Case:
    """One peer, to be set up and run.

    Attributes:
        column: what it is called in the table.
        name: a name of PEERS.
        uswap: which uswap it is; None: another peer.
        pool: bytes of zswap's pool, and of uswap's in front of its swap file.
    """

    config: Peers
    group: str
    data: str
    over: int
    column: str
    name: str
    uswap: Column | None
    pool: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.config.size_of(self.group)

    @property
    def limit(self) -> int:
        """Bytes that may be resident."""
        return self.config.limit_of(self.group, self.over)

    def options(self) -> dict[str, Any]:
        """Of uswap's pager."""
        assert self.uswap is not None
        found: dict[str, Any] = {"limit": self.limit, **self.uswap.options()}
        if self.group == "pooled":
            found["pool"] = self.size * 5 // 4 + MARGIN
        else:
            found |= {
                "pool": self.pool,
                "swapfile": self.config.directory,
                "swap": _segments(2 * self.size + 4 * MARGIN),
                "segment": SEGMENT,
            }
        return found

    @contextlib.contextmanager
    def spec(
        self, number: int, chunk: tuple[int, int], about: dict[str, str]
    ) -> Iterator[dict[str, Any]]:
        """Set up what the peer needs, and say what its process is to do.

        Args:
            number: of the round.
            chunk: a descriptor of the data, and their length.
        """
        spec: dict[str, Any] = {
            "memory": {"uswap": "paged", "naive": "naive", "memmap": "mapped"}.get(
                self.name, "anonymous"
            ),
            "parent": os.getpid(),
            "round": number,
            "chunk": chunk,
            "data": self.data,
            "size": self.size,
            "limit": self.limit,
            "work": [one for one in self.config.work if one in GROUP_WORK[self.group]],
            "seconds": self.config.seconds * (PLAIN if self.name == "plain" else 1),
            "filled": self.name == "memmap",
        }
        with contextlib.ExitStack() as undo:
            if self.name == "uswap":
                spec["options"] = self.options()
            elif self.name == "zram":
                device = undo.enter_context(kernel.zram(4 * self.size + MARGIN))
                spec["statistics"] = device.statistics
                about["zram"] = device.compressor
            elif self.name == "zswap":
                swap = undo.enter_context(kernel.zswap(self.config.directory, self.size + MARGIN))
                spec["zswap"] = True
                about["zswap"] = f"{swap.compressor}, at most {format_size(swap.pool)} of RAM"
            elif self.name == "memmap":
                spec["file"] = undo.enter_context(
                    data_file(self.config.directory, chunk, self.size)
                )
            if self.name in ("zram", "zswap", "memmap"):
                group = undo.enter_context(kernel.cgroup(self.limit))
                spec["cgroup"] = group.procs
                about["cgroup"] = f"version {group.version}"
            yield spec


def _segments(size: int) -> int:
    return -(-size // SEGMENT) * SEGMENT


@contextlib.contextmanager
def data_file(directory: str, chunk: tuple[int, int], size: int) -> Iterator[str]:
    """Make a file of so many bytes of data, none of which the page cache holds; it goes at the end.

    Args:
        chunk: a descriptor of the data, and their length; they repeat.
    """
    data = os.pread(chunk[0], chunk[1], 0)
    with tempfile.NamedTemporaryFile(
        prefix=f"{kernel.NAME}-", suffix=".data", dir=directory, buffering=0
    ) as file:
        for at in range(0, size, len(data)):
            file.write(data[: size - at])
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file.name


def cases_of(
    config: Peers, group: str, data: str, over: int, skipped: dict[str, str]
) -> list[Case]:
    """Return the peers of a group that are not skipped, uswap once for each of its columns."""
    found = []
    pool = kernel.zswap_pool()
    for name in config.groups()[group]:
        if name in skipped:
            continue
        if name == "uswap":
            for one in columns_of(config):
                found.append(Case(config, group, data, over, one.name, name, one, pool))
        else:
            found.append(Case(config, group, data, over, name, name, None, pool))
    return found


def columns_of(config: Peers) -> list[Column]:
    """Return each uswap that is measured, the one with the defaults first, else in the order given.

    The defaults' column is "uswap"; others are named by what distinguishes them.
    """
    blocks, faults = config.blocks or (0,), config.faults or ("",)
    found = []
    for how in faults:
        for block in blocks:
            parts = [how] if len(faults) > 1 else []
            parts += [format_size(block)] if block and len(blocks) > 1 else []
            found.append(Column(" ".join(filter(None, ["uswap", *parts])), block, how))
    return sorted(found, key=lambda one: bool(one.block or one.faults))
