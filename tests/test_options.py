# SPDX-License-Identifier: MIT
"""The table of options: keyword, environment, default."""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any

import numpy as np
import pytest

import uswap
from uswap.commands import COMMANDS, main
from uswap.errors import LimitError
from uswap.options import OPTIONS, Options, describe, parse_block, resolve, unknown_variables
from uswap.sizes import AvailableMemory

from child import run_child

GIB = 1 << 30


def memory() -> AvailableMemory:
    """A made-up machine with 8 GiB."""
    return AvailableMemory(8 * GIB, "made up")


def options(environ: dict[str, str] | None = None, **given: Any) -> Options:
    """Resolve on the made-up machine, away from this process's own environment."""
    return resolve(environ=environ or {}, memory=memory, **given)


def test_table_and_dataclass_agree() -> None:
    """Every row of the table is a field of Options, in the same order."""
    fields = [field.name for field in dataclasses.fields(Options)]
    assert [option.name for option in OPTIONS] == fields


def test_defaults() -> None:
    """The defaults are valid, and fractions are of the memory available."""
    assert options() == Options(
        limit=4 * GIB,
        pool=2 * GIB,
        swapfile="",
        swap=8 * GIB,
        segment=1 << 20,
        io="auto",
        block=4 << 10,
        codec="lz4",
        level=0,
        shuffle="auto",
        workers=0,
        servers=0,
        readahead=1 << 20,
        take="auto",
        drop="auto",
        uffd="auto",
        faults="auto",
        register="late",
        trace="",
        delays="",
        inject="",
        python="",
        pager_timeout=10.0,
    )


def test_precedence() -> None:
    """Keyword before environment before default; None and an empty variable are not given."""
    environ = {"USWAP_LIMIT": "1GiB", "USWAP_POOL": "", "USWAP_CODEC": "zstd"}
    one = options(environ, limit="2GiB", codec=None)
    assert (one.limit, one.pool, one.codec) == (2 * GIB, 2 * GIB, "zstd")
    assert options(environ).limit == GIB


def test_fraction_from_the_environment() -> None:
    """A variable can only be text, so text with a decimal point is a fraction too."""
    assert options({"USWAP_LIMIT": "0.25"}).limit == 2 * GIB


def test_memory_is_asked_only_for_fractions() -> None:
    """With sizes in bytes nothing is read of the machine."""
    resolve(environ={}, memory=lambda: pytest.fail("asked"), limit="1GiB", pool="1GiB")


def test_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it is the process's own environment."""
    monkeypatch.setenv("USWAP_BLOCK", "64KiB")
    assert resolve().block == 65536


def test_frozen() -> None:
    """Options do not change under a running pager."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        options().limit = 1  # type: ignore[misc]


def test_unknown_option() -> None:
    """A misspelt keyword is a TypeError that lists the right ones, and names the nearest."""
    with pytest.raises(
        TypeError, match=r"unknown option 'limits' .did you mean limit\?.; accepted: limit, pool"
    ):
        options(limits=1)
    with pytest.raises(TypeError, match="unknown option 'frobnicate'; accepted: limit, pool"):
        options(frobnicate=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": "lots"}, "limit='lots' is not a size"),
        ({"limit": 1.5}, r"limit=1\.5 .* at most 1"),
        ({"pool": 4096}, "pool=4096 is too small.*at least 64 KiB"),
        ({"block": "5KiB"}, r"block='5KiB' is not a power of two; accepted: 4KiB, 8KiB, .*, 2MiB"),
        ({"block": "2KiB"}, "block='2KiB' .*too small.*from 4 KiB to 2 MiB"),
        ({"block": "4MiB"}, "block='4MiB' .*too large"),
        ({"codec": "gzip"}, "codec='gzip' is unknown; accepted: lz4, zstd, none"),
        ({"level": "high"}, "level='high' is not an integer"),
        ({"level": 10**6}, "level=1000000 is out of range"),
        ({"level": -3}, "level=-3 does not suit the codec lz4, accepted: 0 to 65537"),
        ({"level": 3, "codec": "none"}, "does not suit the codec none"),
        ({"workers": -1}, "workers=-1 is out of range; accepted: an integer from 0 to 16"),
        ({"workers": 17}, "workers=17 is out of range; accepted: an integer from 0 to 16"),
        ({"readahead": "1GiB"}, "readahead='1GiB' .*too large"),
        ({"take": "steal"}, "take='steal' is unknown; accepted: auto, move, copy"),
        ({"drop": "x"}, "accepted: auto, vector, single"),
        ({"uffd": "x"}, "accepted: auto, device, syscall, user-mode"),
        ({"pager_timeout": 0}, "pager_timeout=0 is out of range; accepted: seconds"),
        ({"pager_timeout": float("nan")}, "pager_timeout=nan is out of range"),
        ({"pager_timeout": "soon"}, "pager_timeout='soon' is not a number"),
    ],
)
def test_bad_value(given: dict[str, Any], message: str) -> None:
    """A bad value is a ValueError that names the argument, the value and what is accepted."""
    with pytest.raises(ValueError, match=message):
        options(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": True}, "limit=True is not a size but a bool"),
        ({"block": 0.5}, r"block=0\.5 is not a size but a float"),
        ({"codec": 4}, "codec=4 is a int; accepted: lz4"),
        ({"workers": 1.5}, r"workers=1\.5 is a float; accepted: an integer"),
        ({"workers": True}, "workers=True is a bool"),
        ({"delays": 3}, "delays=3 is a int; accepted: text"),
        ({"pager_timeout": [1]}, r"pager_timeout=\[1\] is a list; accepted: seconds"),
        ({"pager_timeout": True}, "pager_timeout=True is a bool"),
        ({"pager_timeout": np.True_}, "pager_timeout=.*True.* is a bool"),
    ],
)
def test_bad_type(given: dict[str, Any], message: str) -> None:
    """A value of another kind is a TypeError that says the same three things."""
    with pytest.raises(TypeError, match=message):
        options(**given)


def test_bad_variable_is_named() -> None:
    """If the environment is at fault, the message names the variable."""
    with pytest.raises(ValueError, match="USWAP_CODEC='gzip' is unknown"):
        options({"USWAP_CODEC": "gzip"})


def test_limit_below_one_block() -> None:
    """A limit smaller than one block is a LimitError that names both."""
    with pytest.raises(LimitError, match=r"limit is 16 KiB, .* one block .block is 64 KiB"):
        options(limit="16KiB", block="64KiB")
    assert options(limit="64KiB", block="64KiB").limit == 65536


def test_unknown_variables() -> None:
    """A variable that begins with USWAP_ and says nothing is found, with the nearest that would."""
    environ = {option.env: "" for option in OPTIONS} | {
        "USWAP_TEST_ANYTHING": "1",
        "USWAP_STRESS_SECONDS": "1",
        "USWAP_SANITIZE": "thread",
        "PATH": "/bin",
    }
    assert unknown_variables(environ) == []
    one, other = unknown_variables(environ | {"USWAP_LIMTI": "1GiB", "USWAP_ZZZ": "1"})
    assert one.startswith("USWAP_LIMTI is no variable of uswap, and says nothing (did you mean")
    assert "USWAP_LIMIT?" in one
    assert other.startswith("USWAP_ZZZ is no variable of uswap, and says nothing; accepted")


def misspelt() -> None:
    """What the child of test_misspelt_variable runs."""
    for expected in (["USWAP_LIMTI"], []):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with uswap.Pager(limit="1MiB", pool="1MiB"):
                pass
        ours = [one for one in caught if issubclass(one.category, uswap.UswapWarning)]
        ours = [one for one in ours if one.category is not uswap.DegradedWarning]
        assert [str(one.message).split()[0] for one in ours] == expected
        for one in ours:
            assert one.category is uswap.UnknownVariableWarning
            assert one.filename == __file__


def test_misspelt_variable() -> None:
    """The first pager of a process warns of it, at the line that made the pager; the second does not."""
    run_child(misspelt, env={"USWAP_LIMTI": "1GiB"}, timeout=30)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"swap": "8MiB"}, "swap='8MiB' is about a swap file.*only together with swapfile="),
        ({"segment": "1MiB"}, "segment='1MiB' is about a swap file"),
        ({"io": "threads"}, "io='threads' is about a swap file"),
        ({"overwrite": True}, "overwrite=True is about a swap file"),
        ({"swapfile": "", "swap": "8MiB"}, "swap='8MiB' is about a swap file"),
        (
            {"tiers": [uswap.Pool("1MiB")], "io": "threads"},
            "io='threads' is about a swap file.*uswap.File in tiers=",
        ),
    ],
)
def test_options_of_a_file_without_one(given: dict[str, Any], message: str) -> None:
    """What is asked of a swap file that there is not is refused, not ignored."""
    with pytest.raises(ValueError, match=message):
        uswap.Pager(limit="1MiB", **given)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"swapfile": 5}, "swapfile=5"),
        ({"swapfile": b"/var/tmp"}, "swapfile=b'/var/tmp'"),
        ({"trace": 5}, "trace=5"),
        ({"tiers": [uswap.Pool("1MiB"), uswap.File(5)]}, r"tiers\[1\]\.path=5"),  # type: ignore[arg-type]
    ],
)
def test_no_path(given: dict[str, Any], name: str) -> None:
    """What is no path is a TypeError that names the argument."""
    with pytest.raises(TypeError, match=f"{name} is a .*; accepted: a path"):
        uswap.Pager(limit="1MiB", **given)


def no_file() -> None:
    """What the child of test_variables_of_a_file_may_stand runs."""
    with uswap.Pager(limit="1MiB", pool="1MiB", swapfile="") as pager:
        assert pager.tiers == ("pool",)
        assert [tier.kind for tier in pager.stats().tiers] == ["pool"]


def test_variables_of_a_file_may_stand() -> None:
    """They are for pagers that have a file; swapfile="" is none, whatever the environment says."""
    env = {"USWAP_SWAPFILE": "/var/tmp", "USWAP_SWAP": "8MiB", "USWAP_IO": "threads"}
    run_child(no_file, env=env, timeout=30)


def test_numbers_of_other_kinds() -> None:
    """NumPy's integers are integers, and text from the environment is converted."""
    one = options(
        {"USWAP_LEVEL": "-5", "USWAP_PAGER_TIMEOUT": "2.5"}, workers=np.int8(3), codec="zstd"
    )
    assert (one.workers, one.level, one.pager_timeout) == (3, -5, 2.5)
    assert parse_block(np.int64(4096)) == 4096


def test_describe() -> None:
    """Each row has its value for people, where it is from, and the error if it is refused."""
    environ = {"USWAP_LIMIT": "1GiB", "USWAP_CODEC": "gzip"}
    rows = {row.name: row for row in describe(environ=environ, memory=memory)}
    assert list(rows) == [option.name for option in OPTIONS]
    assert (rows["limit"].value, rows["limit"].source) == ("1 GiB", "environment")
    assert (rows["pool"].value, rows["pool"].default) == ("2 GiB", "0.25")
    assert rows["delays"].value == "(none)"
    assert rows["codec"].value == "gzip"
    assert "USWAP_CODEC='gzip' is unknown" in (rows["codec"].error or "")
    assert all(row.env == f"USWAP_{name.upper()}" for name, row in rows.items())
    assert all(row.error is None for name, row in rows.items() if name != "codec")


# ---- the command line


def test_config(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`uswap config` shows every option, its variable, and what fractions are fractions of."""
    monkeypatch.setenv("USWAP_BLOCK", "64KiB")
    assert main(["config"]) == 0
    out = capsys.readouterr().out
    assert all(option.name in out and option.env in out for option in OPTIONS)
    assert "64 KiB" in out
    assert "Fractions are of " in out


@pytest.mark.parametrize("columns", [60, 80, 100, 250])
def test_config_fits(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no wider than the terminal, and has every option's whole description."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["config"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    words = " ".join(out.split())
    for option in OPTIONS:
        if columns in (80, 250):  # elsewhere it is a column beside others
            assert f"{option.doc} [{option.unit}]" in words
        for word in option.doc.split():
            assert word in words


def test_config_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`uswap config --json` prints the same for programs."""
    assert main(["config", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["options"]] == [option.name for option in OPTIONS]
    assert answer["memory"]["bytes"] > 0


def test_config_with_a_bad_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is refused is shown with the reason, and the exit status is 1."""
    monkeypatch.setenv("USWAP_CODEC", "gzip")
    assert main(["config"]) == 1
    assert "error: USWAP_CODEC='gzip' is unknown" in capsys.readouterr().out


def test_config_with_an_unknown_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt variable is told of, and refuses nothing."""
    monkeypatch.setenv("USWAP_CODC", "zstd")
    assert main(["config"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "warning: USWAP_CODC is no variable of uswap" in out
    assert "did you mean USWAP_CODEC?" in out
    assert main(["config", "--json"]) == 0
    assert "USWAP_CODC" in json.loads(capsys.readouterr().out)["warnings"][0]


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], *([e.name, "--help"] for e in COMMANDS)]
)
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The program and each command explain themselves; so each command can be imported."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    assert "uswap" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["frobnicate"], ["--frobnicate"]])
def test_wrong_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No command, or one that there is not, is a usage error: exit status 2."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert "usage: uswap" in capsys.readouterr().err
