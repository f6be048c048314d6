# SPDX-License-Identifier: MIT
"""Where the compression libraries are, and loading them into the C core.

uswap links no codec. The ``lz4`` and ``zstandard`` wheels hold the real libraries inside their
extension modules and export the C functions; the system's shared libraries come second. The
packages are only looked up here, never imported: the core opens the file itself, proves it by
round trips and calls it without the GIL.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from typing import Protocol

__all__ = [
    "CODECS",
    "FILTERS",
    "Candidate",
    "CodecLibrary",
    "FilterLibrary",
    "Loaded",
    "find",
    "load",
    "load_all",
    "number",
    "shuffled_by",
]

#: Codec names and their numbers in the C core (``US_CODEC_*``).
CODECS = {"none": 0, "lz4": 1, "zstd": 2}

#: What may be done to a block before it is compressed, and the numbers in the C core
#: (``US_FILTER_*``): bytes or bits of items of so many bytes are put together.
FILTERS = {"none": 0, "byte2": 1, "byte4": 2, "byte8": 3, "bit2": 4, "bit4": 5, "bit8": 6}

#: For each codec: (distribution, package, the extension module that holds the library), and the
#: system library's soname.
_SOURCES = {
    "lz4": (("lz4", "lz4", "block/_block"), "liblz4.so.1"),
    "zstd": (("zstandard", "zstandard", "_cffi"), "libzstd.so.1"),
}

_WHY = {
    errno.ENOENT: "it cannot be loaded",
    errno.ENOSYS: "it lacks a function that uswap needs",
    errno.EILSEQ: "a round trip through it gave other bytes",
    errno.ENOMEM: "no memory to try it",
}


class FilterLibrary(Protocol):
    """The part of the C core that shuffles; cffi's ``lib`` is one."""

    def us_shuffle_level(self) -> int:
        """Which instructions it uses (``US_SHUFFLE_*``)."""


class CodecLibrary(Protocol):
    """The part of the C core that loads codecs; cffi's ``lib`` is one."""

    def us_codec_load(self, codec: int, path: bytes, /) -> int:
        """Load and prove the library at *path* (0, or a negative errno)."""


@dataclass(frozen=True)
class Candidate:
    """A shared library that may hold a codec."""

    path: str  #: a file, or a bare soname for the dynamic loader to find
    origin: str  #: for people, such as ``"lz4 4.4.5 wheel"``


@dataclass(frozen=True)
class Loaded:
    """How loading one codec went."""

    codec: str
    candidate: Candidate | None  #: what is in use, None when nothing worked
    errors: list[tuple[Candidate, str]] = field(default_factory=list)  #: what was tried before

    @property
    def ready(self) -> bool:
        """Whether the codec can be used."""
        return self.candidate is not None


def find(codec: str) -> list[Candidate]:
    """The libraries that may provide *codec*, best first: its wheel, then the system's.

    The last one, a bare soname, is always there, whether or not the system has it: only the
    dynamic loader knows. ``"none"`` needs no library. An unknown name is a ValueError.
    """
    if codec not in CODECS:
        raise ValueError(f"codec: {codec!r} is not one of {', '.join(CODECS)}")
    if codec not in _SOURCES:
        return []
    wheel, soname = _SOURCES[codec]
    return [*_in_wheel(*wheel), Candidate(soname, f"system {soname}")]


def number(codec: str, filter: str = "none") -> int:
    """The number of a codec with a filter in the C core, as entries and swap files have it.

    Raises:
        ValueError: one is unknown, or "none" is to be filtered.
    """
    if codec not in CODECS:
        raise ValueError(f"codec: {codec!r} is not one of {', '.join(CODECS)}")
    if filter not in FILTERS or (codec == "none" and filter != "none"):
        accepted = ", ".join(FILTERS) if codec != "none" else "none"
        raise ValueError(f"filter: {filter!r} is not one of {accepted} (codec {codec})")
    return CODECS[codec] | FILTERS[filter] << 4


def shuffled_by(lib: FilterLibrary) -> str:
    """The instructions by which the C core shuffles bytes here: "SSE2" or "AVX2"."""
    return {1: "SSE2", 2: "AVX2"}[lib.us_shuffle_level()]


def load_all(lib: CodecLibrary) -> list[Loaded]:
    """Load each codec from the first candidate that works; one result a codec, never an error."""
    return [load(lib, codec) for codec in _SOURCES]


def load(lib: CodecLibrary, codec: str) -> Loaded:
    """Load one codec from the first place where it works; *codec* is "lz4" or "zstd"."""
    errors: list[tuple[Candidate, str]] = []
    for candidate in find(codec):
        code = -lib.us_codec_load(CODECS[codec], os.fsencode(candidate.path))
        if code == 0:
            return Loaded(codec, candidate, errors)
        errors.append((candidate, _WHY.get(code) or os.strerror(code)))
    return Loaded(codec, None, errors)


def _in_wheel(distribution: str, package: str, module: str) -> Iterator[Candidate]:
    # find_spec of a top-level name imports nothing; of a submodule it would import the parents.
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # ValueError: a stand-in without a spec in sys.modules
        return
    for folder in (spec and spec.submodule_search_locations) or ():
        for suffix in EXTENSION_SUFFIXES:
            path = os.path.join(folder, module + suffix)
            if os.path.isfile(path):
                version = _version(distribution, os.path.dirname(folder))
                yield Candidate(path, f"{distribution} {version} wheel")
                break


def _version(distribution: str, site: str) -> str:
    # The folder's name says it. importlib.metadata costs more than all the rest of this module.
    prefix, suffix = distribution + "-", ".dist-info"
    try:
        names = os.listdir(site)
    except OSError:
        names = []
    for name in names:
        if name.startswith(prefix) and name.endswith(suffix):
            return name[len(prefix) : -len(suffix)]
    return "(unknown version)"
