# SPDX-License-Identifier: MIT
"""The one table of options.

A keyword argument, an environment variable and a line of ``uswap config`` are three views of the
same row. A keyword wins over the environment, the environment over the default.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, SupportsIndex, TypedDict

from ._core import lib
from .errors import LimitError
from .sizes import AvailableMemory, available_memory, format_size, is_bool, parse_size

__all__ = [
    "OPTIONS",
    "Faults",
    "Option",
    "Options",
    "PagerOptions",
    "Row",
    "describe",
    "parse_block",
    "parse_faults",
    "resolve",
]

BLOCK_MIN = 4 << 10  # a page
BLOCK_MAX = 2 << 20  # a huge page
POOL_MIN = 64 << 10  # a span
SEGMENT_MIN = 256 << 10
SEGMENT_MAX = 16 << 20
SWAP_MIN = 8 << 20
SWAP_SEGMENTS = 8  # at least
READAHEAD_MAX = 64 << 20

# What each codec understands by a level; 0 is always the codec's own default.
_LEVELS = {
    "lz4": (0, 65537, "acceleration: higher is faster and less dense"),
    "zstd": (-100, 22, "level: higher is denser and slower"),
    "none": (0, 0, "has no levels"),
}


@dataclass(frozen=True)
class Options:
    """Options with every default filled in; sizes are in bytes. The table says what each means."""

    limit: int
    pool: int
    swapfile: str
    swap: int
    segment: int
    io: str
    block: int
    codec: str
    level: int
    shuffle: str
    workers: int
    servers: int
    readahead: int
    take: str
    drop: str
    uffd: str
    faults: str
    register: str
    trace: str
    delays: str
    inject: str
    python: str
    pager_timeout: float


class PagerOptions(TypedDict, total=False):
    """The options that Pager() takes as keywords beside its first four; None is the same as not given."""

    segment: SupportsIndex | str | None
    io: str | None
    block: SupportsIndex | str | None
    codec: str | None
    level: SupportsIndex | str | None
    shuffle: str | None
    workers: SupportsIndex | str | None
    servers: SupportsIndex | str | None
    readahead: SupportsIndex | str | None
    take: str | None
    drop: str | None
    uffd: str | None
    faults: Faults | None
    register: str | None
    trace: str | os.PathLike[str] | None
    delays: str | None
    inject: str | None
    python: str | os.PathLike[str] | None
    pager_timeout: float | str | None


Faults = Literal["auto", "message", "inline"]
Base = Callable[[], int]
Parse = Callable[[object, str, Base], Any]


@dataclass(frozen=True)
class Option:
    """A row of the table.

    Attributes:
        name: the keyword argument.
        default: as a user could have written it.
        unit: what kind of value it is.
        doc: one line.
        parse: turns a given value into the one used; gets the value, what to call it in messages,
            and the memory that fractions are fractions of.
        show: turns the value used into text.
    """

    name: str
    default: object
    unit: str
    doc: str
    parse: Parse
    show: Callable[[Any], str] = str

    @property
    def env(self) -> str:
        """The environment variable."""
        return f"USWAP_{self.name.upper()}"


def parse_faults(value: object, name: str = "faults") -> Faults:
    """Who resolves faults: "auto", "message" or "inline"."""
    how: Faults = _choice("auto", "message", "inline")(value, name, lambda: 0)
    return how


def parse_block(value: object, name: str = "block") -> int:
    """Return the size of a block in bytes: a power of two from 4 KiB to 2 MiB."""
    size = parse_size(value, name, minimum=BLOCK_MIN, maximum=BLOCK_MAX)
    if size & (size - 1):
        raise ValueError(
            f"{name}={value!r} is not a power of two; accepted: {_powers_of_two(BLOCK_MIN, BLOCK_MAX)}"
        )
    return size


def parse_pool(size: object, codec: object, level: object, called: str) -> tuple[int, str, int]:
    """Return a pool's size in bytes, codec and level; `called` is what messages call it.

    Raises:
        TypeError, ValueError: one is wrong; names it and what is accepted.
    """

    def base() -> int:
        return available_memory().bytes

    values = [
        _BY_NAME[name].parse(value, f"{called}.{name if name != 'pool' else 'size'}", base)
        for name, value in (("pool", size), ("codec", codec), ("level", level))
    ]
    _check_level(values[1], values[2], f"{called}.level")
    return values[0], values[1], values[2]


def _check_level(codec: str, level: int, called: str) -> None:
    low, high, meaning = _LEVELS[codec]
    if not low <= level <= high:
        raise ValueError(
            f"{called}={level} does not suit the codec {codec}, "
            f"accepted: {low} to {high} ({meaning})"
        )


def parse_size_of(name: str, value: object) -> int:
    """Return the bytes of an option that is a size, as the option does."""
    size: int = _BY_NAME[name].parse(value, name, lambda: available_memory().bytes)
    return size


def parse_segment(value: object, name: str = "segment") -> int:
    """Return the size of a segment in bytes: a power of two from 256 KiB to 16 MiB."""
    size = parse_size(value, name, minimum=SEGMENT_MIN, maximum=SEGMENT_MAX)
    if size & (size - 1):
        raise ValueError(
            f"{name}={value!r} is not a power of two; "
            f"accepted: {_powers_of_two(SEGMENT_MIN, SEGMENT_MAX)}"
        )
    return size


def _powers_of_two(first: int, last: int) -> str:
    shown = []
    while first <= last:
        shown.append(format_size(first).replace(" ", ""))
        first *= 2
    return ", ".join(shown)


def _size(
    *, minimum: int = 0, maximum: int | None = None, multiple: int | None = None, part: bool = False
) -> Parse:
    def parse(value: object, name: str, base: Base) -> int:
        return parse_size(
            value,
            name,
            base=base if part else None,
            minimum=minimum,
            maximum=maximum,
            multiple=multiple,
        )

    return parse


def _choice(*choices: str) -> Parse:
    accepted = "accepted: " + ", ".join(choices)

    def parse(value: object, name: str, _base: Base) -> str:
        if not isinstance(value, str):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {accepted}")
        if value not in choices:
            raise ValueError(f"{name}={value!r} is unknown; {accepted}")
        return value

    return parse


def _integer(minimum: int, maximum: int) -> Parse:
    accepted = f"accepted: an integer from {minimum} to {maximum}"

    def parse(value: object, name: str, _base: Base) -> int:
        number: int
        try:
            if isinstance(value, str):
                number = int(value)
            elif is_bool(value):
                raise TypeError
            else:
                number = value.__index__()  # type: ignore[attr-defined]
        except ValueError:
            raise ValueError(f"{name}={value!r} is not an integer; {accepted}") from None
        except (TypeError, AttributeError):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {accepted}") from None
        if not minimum <= number <= maximum:
            raise ValueError(f"{name}={value!r} is out of range; {accepted}")
        return number

    return parse


def _seconds(maximum: float) -> Parse:
    accepted = f"accepted: seconds, above 0 and at most {maximum:g}"

    def parse(value: object, name: str, _base: Base) -> float:
        try:
            if is_bool(value):
                raise TypeError
            number = float(value)  # type: ignore[arg-type]
        except ValueError:
            raise ValueError(f"{name}={value!r} is not a number; {accepted}") from None
        except TypeError:
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {accepted}") from None
        if not (math.isfinite(number) and 0 < number <= maximum):
            raise ValueError(f"{name}={value!r} is out of range; {accepted}")
        return number

    return parse


def _text(value: object, name: str, _base: Base) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; accepted: text")
    return value


def _show_text(value: str) -> str:
    return value or "(none)"


OPTIONS: tuple[Option, ...] = (
    Option(
        "limit",
        0.5,
        "size or fraction",
        "resident bytes of all regions together, at most",
        _size(part=True, minimum=BLOCK_MIN),
        format_size,
    ),
    Option(
        "pool",
        0.25,
        "size or fraction",
        "bytes of the compressed pool, at most",
        _size(part=True, minimum=POOL_MIN),
        format_size,
    ),
    Option(
        "swapfile",
        "",
        "path",
        "directory (for an unnamed file) or file that the pool's coldest objects go to",
        _text,
        _show_text,
    ),
    Option(
        "swap",
        "8GiB",
        "size",
        "bytes of the swap file, reserved at once",
        _size(minimum=SWAP_MIN),
        format_size,
    ),
    Option(
        "segment",
        "1MiB",
        "size, a power of two",
        "what is written to the swap file as one",
        lambda value, name, _base: parse_segment(value, name),
        format_size,
    ),
    Option(
        "io",
        "auto",
        "auto, uring, threads",
        "how the swap file is read and written",
        _choice("auto", "uring", "threads"),
    ),
    Option(
        "block",
        "4KiB",
        "size, a power of two",
        "what moves in and out as one; smaller suits random access, larger compresses better",
        lambda value, name, _base: parse_block(value, name),
        format_size,
    ),
    Option("codec", "lz4", "lz4, zstd, none", "how blocks are compressed", _choice(*_LEVELS)),
    Option(
        "level",
        0,
        "integer",
        "lz4's acceleration or zstd's level; 0 is the codec's default (lz4: 1, and 4 for what is shuffled)",
        _integer(
            min(low for low, _, _ in _LEVELS.values()),
            max(high for _, high, _ in _LEVELS.values()),
        ),
    ),
    Option(
        "shuffle",
        "auto",
        "auto, off",
        "whether the bytes of numbers are shuffled before they are compressed, where that helps",
        _choice("auto", "off"),
    ),
    Option(
        "workers",
        0,
        "integer",
        "threads of the pager that compress; 0 is chosen from the CPUs",
        _integer(0, lib.US_WORKERS_MAX),
    ),
    Option(
        "servers",
        0,
        "integer",
        "threads that serve faults: 1, or a second beside the loop while several threads fault; 0 is "
        "chosen from the CPUs",
        _integer(0, 2),
    ),
    Option(
        "readahead",
        "1MiB",
        "size",
        "most that a sequential run swaps in ahead of the touch; 0 is off",
        _size(maximum=READAHEAD_MAX),
        format_size,
    ),
    Option(
        "take",
        "auto",
        "auto, move, copy",
        "how a dirty block is evicted: UFFDIO_MOVE, or write-protect and copy",
        _choice("auto", "move", "copy"),
    ),
    Option(
        "drop",
        "auto",
        "auto, vector, single",
        "how clean blocks are evicted: one process_madvise for many, or one madvise for each",
        _choice("auto", "vector", "single"),
    ),
    Option(
        "uffd",
        "auto",
        "auto, device, syscall, user-mode",
        "where the userfaultfd comes from; user-mode needs no privilege, but then system calls on "
        "evicted memory fail",
        _choice("auto", "device", "syscall", "user-mode"),
    ),
    Option(
        "faults",
        "auto",
        "auto, message, inline",
        "who resolves a fault: the pager process, told by a message of the kernel's, or the thread that "
        "touches the memory, inline, in a handler of SIGBUS; auto is inline where it can be had",
        lambda value, name, _base: parse_faults(value, name),
    ),
    Option(
        "register",
        "late",
        "late, early",
        "when memory is registered: when the limit wants its room, until when it costs nothing; or at "
        "once",
        _choice("late", "early"),
    ),
    Option(
        "trace",
        "",
        "path",
        "new file, or directory for one, in which faults and evictions are recorded for `uswap trace`; "
        "memory is then registered at once",
        _text,
        _show_text,
    ),
    Option(
        "delays",
        "",
        "text",
        "for tests: where the pager waits, at most how many microseconds (point:usec, ...; all), and seed:number",
        _text,
        _show_text,
    ),
    Option("inject", "", "text", "for tests: which system calls fail", _text, _show_text),
    Option(
        "python",
        "",
        "path",
        "interpreter that runs the pager process; by default the one that runs the program",
        _text,
        _show_text,
    ),
    Option(
        "pager_timeout",
        10.0,
        "seconds",
        "how long the pager process may take to be ready",
        _seconds(3600),
        lambda value: f"{value:g} s",
    ),
)

_BY_NAME = {option.name: option for option in OPTIONS}


#: Variables that begin as the options' do, and are for building and testing uswap.
_OTHER_VARIABLES = re.compile("USWAP_(CFLAGS|SANITIZE|WERROR|TEST_.*|.*_SECONDS)")
_looked = False


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return a message for each variable that begins with USWAP_ and is not uswap's."""
    environ = os.environ if environ is None else environ
    known = [option.env for option in OPTIONS]
    return [
        f"{name} is no variable of uswap, and says nothing{_nearest(name, known, 'USWAP_')}; accepted: those "
        "that `uswap config` shows"
        for name in sorted(environ)
        if name.startswith("USWAP_") and name not in known and not _OTHER_VARIABLES.fullmatch(name)
    ]


def unknown_variables_once() -> list[str]:
    """Return the same, the first time in a process; then nothing any more."""
    global _looked
    if _looked:
        return []
    _looked = True
    return unknown_variables()


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A question after the known name that is most like another; nothing if none is."""
    import difflib  # half a millisecond, for those only who have mistyped

    rest = name.removeprefix(prefix)  # what all have alone would be likeness enough
    found = difflib.get_close_matches(rest, [one.removeprefix(prefix) for one in known], n=1)
    return f" (did you mean {prefix}{found[0]}?)" if found else ""


class _Given(NamedTuple):
    value: object
    called: str  # in messages
    source: str


def _given(option: Option, given: Mapping[str, object], environ: Mapping[str, str]) -> _Given:
    value = given.get(option.name)
    if value is not None:
        return _Given(value, option.name, "keyword")
    text = environ.get(option.env)
    if text:  # as with most programs, an empty variable is an unset one
        return _Given(text, option.env, "environment")
    return _Given(option.default, option.name, "default")


def resolve(
    *,
    environ: Mapping[str, str] | None = None,
    memory: Callable[[], AvailableMemory] = available_memory,
    last_pool: int | None = None,
    **given: object,
) -> Options:
    """Return the options to use: keyword, else environment, else default.

    Args:
        environ: the environment, by default the process's own.
        memory: says how much memory fractions are fractions of; called only if there are any.
        last_pool: bytes of the pool that the swap file is fed from, where that is not `pool`.
        given: options by name; ``None`` is the same as not given.

    Raises:
        TypeError: there is no such option, or its value is of the wrong kind.
        ValueError: a value is out of range. The message names the keyword or variable.
        LimitError: each value is right, but not together with another.
    """
    if unknown := sorted(given.keys() - _BY_NAME.keys()):
        nearest = _nearest(unknown[0], _BY_NAME)
        raise TypeError(f"unknown option {unknown[0]!r}{nearest}; accepted: {', '.join(_BY_NAME)}")
    environ = os.environ if environ is None else environ
    base = functools.cache(lambda: memory().bytes)
    values: dict[str, Any] = {}
    called: dict[str, str] = {}
    for option in OPTIONS:
        one = _given(option, given, environ)
        values[option.name] = option.parse(one.value, one.called, base)
        called[option.name] = one.called
    options = Options(**values)
    _check_together(options, called, last_pool or options.pool)
    return options


def _check_together(options: Options, called: Mapping[str, str], last_pool: int) -> None:
    if options.limit < options.block:
        raise LimitError(
            f"{called['limit']} is {format_size(options.limit)}, which is less than one block "
            f"({called['block']} is {format_size(options.block)}); "
            "accepted: at least one block, and some hundred of them to be of use"
        )
    if options.swapfile and options.swap < SWAP_SEGMENTS * options.segment:
        raise LimitError(
            f"{called['swap']} is {format_size(options.swap)}, which is less than {SWAP_SEGMENTS} "
            f"segments ({called['segment']} is {format_size(options.segment)}); accepted: at least "
            f"{format_size(SWAP_SEGMENTS * options.segment)}"
        )
    if options.swapfile and options.segment < 2 * options.block:
        raise LimitError(
            f"{called['segment']} is {format_size(options.segment)}, which has no room for a block "
            f"({called['block']} is {format_size(options.block)}) and what goes with it; accepted: "
            f"at least {format_size(2 * options.block)}"
        )
    if options.swapfile and options.segment > last_pool // 4:
        raise LimitError(
            f"{called['segment']} is {format_size(options.segment)}, which is more than a quarter of "
            f"the pool above the file ({format_size(last_pool)}): it would never be full; "
            f"accepted: at most {format_size(last_pool // 4)}"
        )
    _check_level(options.codec, options.level, called["level"])


class Row(NamedTuple):
    """An option and its present value, for people to read."""

    name: str
    value: str
    source: str
    """``default``, ``environment`` or ``keyword``."""
    default: str
    env: str
    unit: str
    doc: str
    error: str | None = None
    """Why the value given is refused; it is then shown as it was given."""


def describe(
    *,
    environ: Mapping[str, str] | None = None,
    memory: Callable[[], AvailableMemory] = available_memory,
    **given: object,
) -> list[Row]:
    """Return the table with the values that :func:`resolve` would use, wrong ones marked."""
    environ = os.environ if environ is None else environ
    base = functools.cache(lambda: memory().bytes)
    rows = []
    for option in OPTIONS:
        one = _given(option, given, environ)
        error = None
        try:
            value = option.show(option.parse(one.value, one.called, base))
        except (TypeError, ValueError) as exc:
            value, error = str(one.value), str(exc)
        default = str(option.default) or "(none)"
        rows.append(
            Row(option.name, value, one.source, default, option.env, option.unit, option.doc, error)
        )
    return rows
