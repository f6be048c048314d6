# SPDX-License-Identifier: MIT
"""Codecs: csrc/codec.c with each library at hand, and uswap.codecs, which finds them."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from uswap import codecs

from compiled import ROOT, check, fresh, gcc, shared

CODECS = [ROOT / f"csrc/{name}.c" for name in ("codec", "filter", "alloc")]
SOURCES = [ROOT / "tests/c/codec_test.c", *CODECS]
SEEDS = [1, random.randrange(2**32)]

# The wheels need the interpreter's symbols, so there the same tests run inside one.
IN_PYTHON = """
import ctypes, sys
test = ctypes.CDLL(sys.argv[1]).codec_test_main
test.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_ulonglong]
sys.exit(test(int(sys.argv[2]), sys.argv[3].encode(), int(sys.argv[4])))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program, with sanitizers."""
    out = tmp_path_factory.mktemp("codec") / "codec_test"
    return gcc(out, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *SOURCES, "-ldl")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a shared object; undefined behaviour traps, so no runtime is preloaded."""
    out = tmp_path_factory.mktemp("codec") / "codec_test.so"
    return shared(out, *SOURCES)


@pytest.fixture
def core(library: Path, tmp_path: Path) -> ctypes.CDLL:
    """A core whose table of codecs is empty: a copy, which the loader takes for another library."""
    core = fresh(library, tmp_path)
    core.us_codec_ready.restype = ctypes.c_bool
    return core


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("codec", "soname"), [("lz4", "liblz4.so.1"), ("zstd", "libzstd.so.1")])
def test_the_system_library(program: Path, codec: str, soname: str, seed: int) -> None:
    """Round trips, tight room, damaged input, filled blocks and the probe, under sanitizers."""
    check([program, str(codecs.CODECS[codec]), soname, str(seed)])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_the_library_in_the_wheel(library: Path, codec: str, seed: int) -> None:
    """The same with the wheel's library; the wheels are dependencies, so they must be there."""
    wheel = codecs.find(codec)[0]
    assert wheel.origin.endswith(" wheel")
    number = str(codecs.CODECS[codec])
    command = [sys.executable, "-c", IN_PYTHON, library, number, wheel.path, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.returncode}\n{done.stdout}{done.stderr}"


# A library with lz4's names. What LIE makes of it: 1 loses a byte's value, 2 writes past its room,
# 3 always claims that all is well.
LIAR = r"""
#include <string.h>
int LZ4_sizeofState(void) { return 16; }
int LZ4_compress_fast_extState(void *s, const char *src, char *dst, int n, int cap, int a)
{
    (void)s;
    (void)a;
    if (LIE != 2 && cap < n + 1)
        return 0;
    memcpy(dst, src, n);
    dst[n] = 'x';
    return n + 1;
}
int LZ4_decompress_safe(const char *src, char *dst, int n, int cap)
{
    if (LIE != 3 && (n - 1 != cap || src[n - 1] != 'x'))
        return -1;
    memcpy(dst, src, cap);
    if (LIE == 1 && cap > 1000)
        dst[999] ^= 1;
    return cap;
}
"""


@pytest.mark.parametrize(
    ("lie", "result"), [(0, 0), (1, -errno.EILSEQ), (2, -errno.EILSEQ), (3, -errno.EILSEQ)]
)
def test_a_library_is_proven_before_use(
    core: ctypes.CDLL, tmp_path: Path, lie: int, result: int
) -> None:
    """A library that gives other bytes, passes its room or takes anything is refused."""
    source = tmp_path / "liar.c"
    source.write_text(LIAR)
    liar = gcc(tmp_path / "liar.so", "-shared", "-fPIC", f"-DLIE={lie}", source)
    assert core.us_codec_load(1, os.fsencode(liar)) == result
    assert core.us_codec_ready(1) == (result == 0)


def test_every_codec_is_found_and_loaded(core: ctypes.CDLL) -> None:
    """The wheels come first and work; nothing else is tried."""
    loaded = codecs.load_all(core)
    assert [one.codec for one in loaded] == ["lz4", "zstd"]
    for one in loaded:
        assert one.ready
        assert not one.errors
        assert one.candidate is not None
        assert one.candidate.origin.endswith(" wheel")
        assert core.us_codec_ready(codecs.CODECS[one.codec])


def test_the_packages_are_not_imported() -> None:
    """Looking for the wheels runs none of their code."""
    code = (
        "import sys; from uswap import codecs; known = set(sys.modules); "
        "codecs.find('lz4'); codecs.find('zstd'); print(*(set(sys.modules) - known))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"lz4", "zstandard", "importlib.metadata"} & set(done.stdout.split())


def test_find_names_the_origin() -> None:
    """Wheel with its version first, then the system's library by its soname."""
    wheel, system = codecs.find("lz4")
    assert os.path.isfile(wheel.path)
    assert wheel.origin.startswith("lz4 ")
    assert wheel.origin.split()[1][0].isdigit()
    assert system == codecs.Candidate("liblz4.so.1", "system liblz4.so.1")
    assert codecs.find("none") == []
    with pytest.raises(ValueError, match="'lzma' is not one of none, lz4, zstd"):
        codecs.find("lzma")


def test_without_the_wheels_the_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is absent, or is there without the extension module, is passed over."""
    monkeypatch.setattr(codecs, "find_spec", lambda name: None)
    assert [one.origin for one in codecs.find("zstd")] == ["system libzstd.so.1"]

    def broken(name: str) -> None:
        raise ValueError(f"{name}.__spec__ is None")

    monkeypatch.setattr(codecs, "find_spec", broken)
    assert [one.origin for one in codecs.find("zstd")] == ["system libzstd.so.1"]


class Picky:
    """A core that refuses some of what it is asked to load."""

    def __init__(self, refuse: dict[str, int]) -> None:
        self.refuse = refuse
        self.asked: list[tuple[int, bytes]] = []

    def us_codec_load(self, codec: int, path: bytes, /) -> int:
        """Note it, and refuse or not."""
        self.asked.append((codec, path))
        return next((rc for part, rc in self.refuse.items() if part in os.fsdecode(path)), 0)


def test_the_next_candidate_is_tried_and_errors_are_kept() -> None:
    """What failed is reported with its reason, whether or not another one worked."""
    core = Picky({"_block": -errno.EILSEQ, "zst": -errno.ENOSYS, "_cffi": -errno.EMFILE})
    lz4, zstd = codecs.load_all(core)
    assert lz4.ready
    assert lz4.candidate is not None
    assert lz4.candidate.path == "liblz4.so.1"
    assert [why for _, why in lz4.errors] == ["a round trip through it gave other bytes"]
    assert not zstd.ready
    assert zstd.candidate is None
    assert [one for one, _ in zstd.errors] == codecs.find("zstd")
    assert zstd.errors[1][1] == "it lacks a function that uswap needs"
    assert [number for number, _ in core.asked] == [1, 1, 2, 2]
