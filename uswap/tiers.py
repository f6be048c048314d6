# SPDX-License-Identifier: MIT
"""Where compressed blocks lie: an ordered list of tiers, hot to cold.

``Pager(tiers=[...])`` takes one; ``pool=``, ``codec=``, ``level=``, ``swapfile=``, ``swap=``, ``segment=``
and ``overwrite=`` are the short way to say the commonest ones. A pager's list has one to three pools,
then at most one file. Blocks that leave RAM go to the first pool; what is coldest in a tier that is
nearly full is demoted to the next, recompressed if that has another codec, and as it is if it is a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from . import options as _options
from .paths import path_of

__all__ = ["FILE", "POOLS", "File", "Pool", "TierStats", "resolve"]

POOLS = 3
"""Pools at most: US_POOLS."""
FILE = 4
"""The file's number in the core: US_TIER_FILE. The pools' are 1 and up."""

#: The options that a list of tiers stands in place of.
SHORT = ("pool", "codec", "level", "swapfile", "swap", "segment")
#: The options that say nothing where there is no file.
OF_A_FILE = ("swap", "segment", "io")


@dataclass(frozen=True)
class Pool:
    """A tier in RAM.

    Args:
        size: bytes that its objects may take: int bytes, "2GiB", or a fraction of the memory available.
        codec: "lz4", "zstd" or "none".
        level: lz4's acceleration or zstd's level; 0 is the codec's default (lz4: 1, and 4 for what is
            shuffled).
        name: what it is called in stats() and for Region.migrate(); by default "pool", "pool2", "pool3".
    """

    size: SupportsIndex | str | float
    codec: str = "lz4"
    level: SupportsIndex = 0
    name: str | None = None


@dataclass(frozen=True)
class File:
    """The swap file; always the last tier.

    Args:
        path: a directory, in which an unnamed file is made, or a path.
        size: bytes, reserved at once.
        segment: bytes that are written as one, a power of two.
        overwrite: use an existing file or block device in place; what it holds is lost.
        name: as for Pool; by default "file".
    """

    path: str | os.PathLike[str]
    size: SupportsIndex | str = "8GiB"
    segment: SupportsIndex | str = "1MiB"
    overwrite: bool = False
    name: str | None = None


@dataclass(frozen=True)
class TierStats:
    """One tier: gauges (now) and counters (since the pager began). Bytes, unless the name says otherwise."""

    name: str
    kind: str
    """"pool" or "file"."""
    budget: int
    used: int
    """Objects, those of clean resident blocks' copies included; of a file with their headers."""
    allocated: int
    """Memory, or segments, that hold them."""
    raw: int
    """Blocks that are out and lie here, before compression."""
    bytes: int
    """The same after compression."""
    kept: int
    """Copies of clean resident blocks, after compression."""
    came_blocks: int
    """Blocks that have come from another tier."""
    came: int
    """The same in bytes, as they are here."""
    recompressed_blocks: int
    """Of these: recompressed."""
    recompressed_in: int
    recompressed_out: int

    @property
    def ratio(self) -> float:
        """Compression of what is out and lies here; 1.0 when nothing does."""
        return self.raw / self.bytes if self.bytes else 1.0

    @classmethod
    def read(cls, raw: Any, name: str, kind: str) -> TierStats:
        """Make one from the C struct."""
        numbers = {f: int(getattr(raw, f)) for f in cls.__dataclass_fields__ if hasattr(raw, f)}
        return cls(name=name, kind=kind, **numbers)


@dataclass(frozen=True)
class Resolved:
    """A pager's tiers with sizes in bytes.

    Attributes:
        short: what the list says in the options' words: the first pool, and the file.
        pools: of the other pools: bytes, codec, level.
        overwrite: of the file.
        names: of all tiers, hot to cold.
        numbers: what the core calls them, in the same order.
    """

    short: dict[str, Any]
    pools: tuple[tuple[int, str, int], ...]
    overwrite: bool
    names: tuple[str, ...]
    numbers: tuple[int, ...]


def _refuse_options_of_a_file(
    given: Mapping[str, Any], accepted: str, *, overwrite: bool = False
) -> None:
    """What is asked of a swap file that there is not would be silently ignored. Variables may stand."""
    asked = {name: given.get(name) for name in OF_A_FILE} | {"overwrite": overwrite or None}
    for name, value in asked.items():
        if value is not None:
            raise ValueError(
                f"{name}={value!r} is about a swap file, and this pager has none; accepted: {accepted}"
            )


def resolve(
    tiers: Sequence[Pool | File] | None, given: Mapping[str, Any], *, overwrite: bool
) -> Resolved:
    """Check a list of tiers.

    Args:
        tiers: as for Pager; None: the options say it.
        given: the keywords; those of SHORT must not be there beside a list.
        overwrite: the keyword.

    Raises:
        TypeError, ValueError: names what is wrong and what is accepted.
    """
    if tiers is None:
        swapfile = given.get("swapfile")
        if swapfile is None:
            swapfile = os.environ.get("USWAP_SWAPFILE")
        if not swapfile:
            _refuse_options_of_a_file(given, "only together with swapfile=", overwrite=overwrite)
        file = (FILE,) if swapfile else ()
        return Resolved({}, (), overwrite, ("pool", "file")[: 1 + len(file)], (1, *file))
    for name in (*SHORT, *(["overwrite"] if overwrite else [])):
        if given.get(name) is not None or name == "overwrite":
            raise ValueError(f"{name}= is given beside tiers=; accepted: one or the other")
    if isinstance(tiers, str | bytes) or not isinstance(tiers, Sequence):
        raise TypeError(
            f"tiers={tiers!r} is no list; accepted: a list of uswap.Pool and uswap.File"
        )
    for k, tier in enumerate(tiers):
        if not isinstance(tier, Pool | File):
            raise TypeError(
                f"tiers[{k}]={tier!r} is a {type(tier).__name__}; accepted: uswap.Pool, uswap.File"
            )
    pools = [tier for tier in tiers if isinstance(tier, Pool)]
    files = [tier for tier in tiers if isinstance(tier, File)]
    if not 1 <= len(pools) <= POOLS or len(files) > 1 or list(tiers) != [*pools, *files]:
        raise ValueError(
            f"tiers={list(tiers)!r} are not in an order that is possible; accepted: 1 to {POOLS} pools,"
            " then at most one file"
        )
    if not files:
        _refuse_options_of_a_file(given, "only together with a uswap.File in tiers=")
    names = [
        tier.name or ("file" if isinstance(tier, File) else f"pool{k + 1}" if k else "pool")
        for k, tier in enumerate(tiers)
    ]
    for k, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"tiers[{k}].name={name!r} is a {type(name).__name__}; accepted: text")
        if name in names[:k]:
            raise ValueError(
                f"tiers[{k}].name={name!r} is there twice; accepted: names that differ"
            )
    # An empty text is an option that is not set, so the environment has no say.
    short: dict[str, Any] = {"swapfile": ""}
    rest = []
    for k, tier in enumerate(tiers):
        called = f"tiers[{k}]"
        if isinstance(tier, File):
            path = path_of(tier.path, f"{called}.path")
            if not path:
                raise ValueError(f"{called}.path is empty; accepted: a directory or a file")
            short |= {"swapfile": path, "swap": tier.size, "segment": tier.segment}
            continue
        parsed = _options.parse_pool(tier.size, tier.codec, tier.level, called)
        if k == 0:
            short |= dict(zip(("pool", "codec", "level"), parsed, strict=True))
        else:
            rest.append(parsed)
    return Resolved(
        short,
        tuple(rest),
        bool(files and files[0].overwrite),
        tuple(names),
        tuple(FILE if isinstance(tier, File) else k + 1 for k, tier in enumerate(tiers)),
    )
