# SPDX-License-Identifier: MIT
"""Shuffled blocks: csrc/filter.c and choice.c, and paging by them."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import uswap
from uswap import codecs, fsck

from child import run_child
from compiled import ROOT, check, gcc, shared

SANITIZE = os.environ.get("USWAP_SANITIZE", "address,undefined")
SOURCES = [
    ROOT / "tests/c/filter_test.c",
    *(ROOT / f"csrc/{name}.c" for name in ("choice", "filter", "codec", "alloc")),
]
SEEDS = [1, random.randrange(2**32)]
MIB = 1 << 20
SECONDS = 4.0

IN_PYTHON = """
import ctypes, sys

FAULTS_BY = ("inline", "message")
test = ctypes.CDLL(sys.argv[1]).filter_test_main
test.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulonglong]
sys.exit(test(int(sys.argv[2]), sys.argv[3].encode(), sys.argv[4].encode(), int(sys.argv[5])))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program, with sanitizers."""
    out = tmp_path_factory.mktemp("filter") / "filter_test"
    sanitize = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    return gcc(out, *sanitize, *SOURCES, "-ldl")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a shared object; undefined behaviour traps, so no runtime is preloaded."""
    out = tmp_path_factory.mktemp("filter") / "filter_test.so"
    return shared(out, *SOURCES)


@pytest.fixture(scope="module")
def filters(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/filter.c by itself, compiled as the wheel is."""
    out = tmp_path_factory.mktemp("filter") / "filter.so"
    return ctypes.CDLL(os.fspath(gcc(out, "-O2", "-shared", "-fPIC", ROOT / "csrc/filter.c")))


def blosc2() -> str:
    """The path of blosc2's library, without importing the package; empty where it is not installed."""
    spec = find_spec("blosc2")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, "lib/libblosc2.so")).exists():
            return os.fspath(path)
    return ""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("codec", "soname"), [("lz4", "liblz4.so.1"), ("zstd", "libzstd.so.1")])
def test_with_the_system_codec(program: Path, codec: str, soname: str, seed: int) -> None:
    """Layouts, round trips, damaged input, what is chosen, threads that share it; under sanitizers."""
    check([program, str(codecs.CODECS[codec]), soname, blosc2(), str(seed)])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_with_the_codec_in_the_wheel(library: Path, codec: str, seed: int) -> None:
    """The same with the wheel's codec, inside an interpreter."""
    number, path = str(codecs.CODECS[codec]), codecs.find(codec)[0].path
    check([sys.executable, "-c", IN_PYTHON, library, number, path, blosc2(), str(seed)])


LEVELS = ["C", "SSE2", "AVX2"]
UNIT = 512


def level_of(filters: ctypes.CDLL, name: str) -> int:
    """The level's number; skips the test where this CPU lacks the instructions."""
    level = LEVELS.index(name)
    if level > filters.us_shuffle_level():
        pytest.skip(f"this CPU has no {name}")
    return level


@pytest.mark.parametrize("item", [2, 4, 8])
@pytest.mark.parametrize("name", LEVELS)
def test_every_size(filters: ctypes.CDLL, name: str, item: int) -> None:
    """Each implementation gives NumPy's transposition, and undoes it: all sizes up to 128 KiB, then each 61st to 2 MiB."""
    import numpy as np

    level, most = level_of(filters, name), 2 * MIB
    source = np.random.default_rng(item).integers(0, 256, most, "u1")
    planes = source.reshape(-1, item).T.copy()
    out, back = np.zeros(most + 64, "u1"), np.zeros(most + 64, "u1")
    for n in (*range(UNIT, most // 16, UNIT), *range(most, most // 16, -61 * UNIT)):
        out[n : n + 64] = back[n : n + 64] = 0xA5
        filters.us_shuffle(level, item, *map(pointer, (source, out)), n)
        # The first items' planes are the beginnings of the planes of all.
        assert np.array_equal(out[:n].reshape(item, -1), planes[:, : n // item]), n
        filters.us_unshuffle(level, item, *map(pointer, (out, back)), n)
        assert np.array_equal(back[:n], source[:n]), n
        assert (out[n : n + 64] == 0xA5).all(), n
        assert (back[n : n + 64] == 0xA5).all(), n


def pointer(array: Any) -> ctypes.c_void_p:
    """Where an array's bytes are."""
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.skipif(not blosc2(), reason="blosc2 is not installed")
@pytest.mark.parametrize("item", [2, 4, 8])
@pytest.mark.parametrize("name", LEVELS)
def test_the_bytes_are_those_of_blosc2(filters: ctypes.CDLL, name: str, item: int) -> None:
    """What is stored is what blosc2's shuffle gives, and blosc2 undoes it."""
    import numpy as np

    level, theirs = level_of(filters, name), ctypes.CDLL(blosc2())
    source = np.random.default_rng(item).integers(0, 256, 2 * MIB, "u1")
    ours, other = np.zeros_like(source), np.zeros_like(source)
    for n in (UNIT, 3 * UNIT, *(4096 << k for k in range(10)), 2 * MIB - UNIT):
        filters.us_shuffle(level, item, *map(pointer, (source, ours)), n)
        assert theirs.blosc2_shuffle(item, n, *map(pointer, (source, other))) == n
        assert np.array_equal(ours[:n], other[:n]), n
        assert theirs.blosc2_unshuffle(item, n, *map(pointer, (ours, other))) == n
        assert np.array_equal(other[:n], source[:n]), n
        filters.us_unshuffle(level, item, *map(pointer, (ours, other)), n)
        assert np.array_equal(other[:n], source[:n]), n


@pytest.mark.parametrize("optimize", ["-O1", "-O2", "-O3"])
def test_safe_in_a_signal_handler(tmp_path: Path, optimize: str) -> None:
    """The filters call nothing, keep nothing that is written, and take less than 1 KiB of stack in all."""
    out = tmp_path / "filter.o"
    gcc(out, optimize, "-fPIC", "-c", "-fstack-usage", ROOT / "csrc/filter.c")
    usage = [line.split("\t") for line in out.with_suffix(".su").read_text().splitlines()]
    assert {name.split(":")[-1] for name, _, _ in usage} >= {"us_filter_do", "us_filter_undo"}
    assert {kind for _, _, kind in usage} == {"static"}
    assert sum(int(size) for _, size, _ in usage) < 1024
    done = subprocess.run(["nm", out], capture_output=True, text=True, check=True)
    symbols = [line.split()[-2:] for line in done.stdout.splitlines()]
    # What the CPU has, which the compiler's runtime sets before any of this can run.
    assert {name for kind, name in symbols if kind == "U"} <= {
        "__cpu_model",
        "_GLOBAL_OFFSET_TABLE_",
    }
    assert not [name for kind, name in symbols if kind in "bBdDcC"]


# ---- uswap.codecs


def test_numbers() -> None:
    """Codec and filter are one byte, as csrc/codec.h draws it."""
    assert codecs.number("lz4") == 1
    assert codecs.number("lz4", "byte8") == 0x31
    assert codecs.number("zstd", "bit4") == 0x52
    assert codecs.number("none") == 0
    with pytest.raises(ValueError, match="filter: 'byte3' is not one of none, byte2, byte4"):
        codecs.number("lz4", "byte3")
    with pytest.raises(ValueError, match=r"'byte8' is not one of none .codec none"):
        codecs.number("none", "byte8")
    with pytest.raises(ValueError, match="codec: 'gzip' is not one of none, lz4, zstd"):
        codecs.number("gzip")


@pytest.mark.parametrize(("level", "name"), [(1, "SSE2"), (2, "AVX2")])
def test_instructions(level: int, name: str) -> None:
    """The core's level has a name."""

    class Core:
        def us_shuffle_level(self) -> int:
            return level

    assert codecs.shuffled_by(Core()) == name


# ---- paging


def arrays(mib: int, seed: int) -> dict[str, Any]:
    """Numbers of several types, text and bytes, each of so many MiB."""
    import numpy as np

    rng, n = np.random.default_rng(seed), mib * MIB
    words = [bytes(rng.integers(97, 123, k, "u1")) for k in rng.integers(2, 12, 300)]
    text = b" ".join(words[i] for i in rng.integers(0, 300, n // 4))[:n].ljust(n)
    return {
        "int64": rng.integers(0, 1000, n // 8),
        "float64": np.cumsum(rng.normal(size=n // 8)) + 5000,
        "float32": rng.normal(size=n // 4).astype("f4"),
        "int32": rng.integers(0, 100_000, n // 4).astype("i4"),
        "int16": (np.sin(np.arange(n // 2) / 50) * 3000 + rng.normal(0, 9, n // 2)).astype("i2"),
        "text": np.frombuffer(bytearray(text), "u1"),
        "pairs": np.array([(i, i % 700) for i in range(n // 16)], "i8,f8"),
    }


def settled(pager: uswap.Pager) -> uswap.Stats:
    """The statistics when nothing is in the outbox."""
    while (stats := pager.stats()).outbox:
        time.sleep(0.002)
    return stats


def paging(options: dict[str, Any], how: str) -> dict[str, float]:
    """Each kind of array out and in; what part was shuffled, and the ratio."""
    import numpy as np

    found: dict[str, float] = {}
    for name, source in arrays(4, 3).items():
        with uswap.Pager(limit="8MiB", pool="16MiB", **options) as pager:
            if how == "array":
                paged = pager.array(source)
                region = pager.region_of(paged)
            elif how == "wrap":
                paged = source.copy()
                region = pager.wrap(paged)  # type: ignore[assignment]
            else:
                region = pager.region(source.nbytes)
                paged = np.frombuffer(region, source.dtype)
                paged[:] = source
            region.evict()
            stats = settled(pager)
            region.check()
            assert paged.tobytes() == source.tobytes()
            found[name] = stats.shuffled_blocks / stats.compressed_blocks
            found[f"{name} ratio"] = stats.ratio
            found["about"] = pager.about()["shuffle"]  # type: ignore[assignment]
            del paged
            if how == "wrap":
                region.release()
    return found


@pytest.mark.parametrize("how", ["array", "wrap", "region"])
def test_what_is_shuffled(how: str) -> None:
    """Numbers are, and take less; text and what does not compress are not. No option or package is needed."""
    found = run_child(paging, args=[{}, how], timeout=120).json
    assert found["about"] in ("SSE2", "AVX2")
    for name in ("int64", "float64", "int32", "int16"):
        assert found[name] > 0.9, found
    assert found["pairs"] > 0.9
    assert found["int64 ratio"] > 4
    assert found["float64 ratio"] > 1.2
    assert found["int32 ratio"] > 1.5
    assert found["text"] < 0.02
    assert found["float32"] == 0
    assert found["float32 ratio"] == 1


@pytest.mark.parametrize(
    "options", [{"block": 4096}, {"block": "64KiB"}, {"codec": "zstd"}], ids=str
)
def test_blocks_and_codecs(options: dict[str, Any]) -> None:
    """With other blocks, and with zstd."""
    found = run_child(paging, args=[options, "region"], timeout=120).json
    assert found["int64"] > 0.9
    assert found["int64 ratio"] > 4
    assert found["text"] < 0.02


@pytest.mark.parametrize("options", [{"shuffle": "off"}, {"codec": "none"}], ids=str)
def test_off(options: dict[str, Any]) -> None:
    """Nothing is shuffled if it is not wanted, or if nothing is compressed."""
    found = run_child(paging, args=[options, "array"], timeout=120).json
    assert (found["about"] == "off") == ("shuffle" in options)
    assert all(value == 0 for name, value in found.items() if name in arrays(1, 1))
    assert found["int64 ratio"] < 3


def down(folder: str, shuffle: str) -> dict[str, Any]:
    """Through three tiers, what sinks compressed anew for the second; then read, checked, and moved about."""
    path = Path(folder, "swap")
    tiers = [
        uswap.Pool("2MiB", name="hot"),
        uswap.Pool("2MiB", codec="zstd", level=1, name="cold"),
        uswap.File(path, "64MiB", segment="256KiB"),
    ]
    kinds = arrays(4, 9)
    with uswap.Pager(limit="4MiB", tiers=tiers, shuffle=shuffle) as pager:
        paged = {name: pager.array(source) for name, source in kinds.items()}
        for array in paged.values():
            pager.region_of(array).evict()
        settled(pager)
        stored = pager.stats().stored
        shuffled = fsck.check(path).total("shuffled")
        for name, array in paged.items():
            pager.region_of(array).check()
            assert array.tobytes() == kinds[name].tobytes(), name
        rng = random.Random(5)
        for _ in range(40):
            name = rng.choice(list(paged))
            region = pager.region_of(paged[name])
            region.evict()
            start = rng.randrange(4 * MIB - (256 << 10))
            try:
                region.migrate(rng.choice(["hot", "cold", "file"]), start, 256 << 10)
            except OSError as e:
                if e.errno != errno.ENOSPC:  # so small a pool is full now and then
                    raise
            at = rng.randrange(len(paged[name]) - 500)
            paged[name][at : at + 500] = kinds[name][at : at + 500] = kinds[name][:500].copy()
        for name, array in paged.items():
            assert array.tobytes() == kinds[name].tobytes(), name
        stats = pager.stats()
        recoded = sum(tier.recompressed_blocks for tier in stats.tiers)
        assert stats.lost == 0
        del array, paged
    return {
        "stored": stored,
        "shuffled": shuffled,
        "recoded": recoded,
        "blocks": stats.shuffled_blocks,
    }


@pytest.mark.parametrize("shuffle", ["auto", "off"])
def test_tiers(tmp_path: Path, shuffle: str) -> None:
    """From pool to denser pool to file and back, whatever the filter; fsck counts what was shuffled."""
    found = run_child(down, args=[str(tmp_path), shuffle], timeout=120).json
    assert found["stored"] > MIB
    assert found["recoded"] > 0
    assert (found["shuffled"] > 100) == (shuffle == "auto")
    assert (found["blocks"] > 100) == (shuffle == "auto")


def stress(seconds: float, folder: str) -> dict[str, int]:
    """Regions whose contents change their type all the while, beside arrays that say what they must hold."""
    import numpy as np

    rng = np.random.default_rng()
    tiers = [
        uswap.Pool("3MiB"),
        uswap.Pool("2MiB", codec="zstd"),
        uswap.File(folder, "64MiB", segment="256KiB"),
    ]
    size, piece = 12 * MIB, 96 << 10
    with uswap.Pager(limit="4MiB", tiers=tiers, workers=2) as pager:
        region = pager.region(size)
        paged, model = np.frombuffer(region, "u1"), np.zeros(size, "u1")
        end, rounds = time.monotonic() + seconds, 0
        kinds = list(arrays(1, 1).values())
        while time.monotonic() < end:
            source = kinds[rng.integers(len(kinds))].view("u1")
            at, of = int(rng.integers(size - piece)), int(rng.integers(len(source) - piece))
            paged[at : at + piece] = model[at : at + piece] = source[of : of + piece]
            at = int(rng.integers(size - piece))
            assert (paged[at : at + piece] == model[at : at + piece]).all(), at
            rounds += 1
        assert (paged == model).all()
        stats = pager.stats()
        assert stats.lost == 0
        del paged
    return {"rounds": rounds, "shuffled": stats.shuffled_blocks, "plain": stats.compressed_blocks}


def test_stress(tmp_path: Path) -> None:
    """Nothing is lost or mixed up where types change under the pager's feet."""
    found = run_child(stress, args=[SECONDS, str(tmp_path)], timeout=SECONDS * 4 + 60).json
    assert found["rounds"] > 50
    assert 0 < found["shuffled"] < found["plain"]


def sizes() -> dict[str, Any]:
    """Item sizes, good and bad."""
    errors = []
    with uswap.Pager(limit="8MiB", pool="16MiB") as pager:
        for bad in (0, -1, 1 << 20, "8", 2.0, True):
            for call in (pager.region, pager.wrap):
                try:
                    call(1 << 20 if call == pager.region else bytearray(1 << 20), itemsize=bad)  # type: ignore[operator]
                except (TypeError, ValueError) as e:
                    errors.append(f"{type(e).__name__}: {e}")
        assert not pager.regions
        for good in (1, 2, 3, 8, 16, None):
            pager.region(1 << 20, itemsize=good).close()
    return {"errors": errors}


def test_item_sizes() -> None:
    """A bad item size is refused by name, value and what is accepted."""
    errors = run_child(sizes, timeout=60).json["errors"]
    assert len(errors) == 12
    assert errors[0].startswith(
        "ValueError: itemsize=0 is out of range; accepted: bytes of a number"
    )
    assert errors[6] == errors[7]
    assert errors[6].startswith("TypeError: itemsize='8' is a str; accepted: ")
