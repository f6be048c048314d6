# SPDX-License-Identifier: MIT
"""Sizes as people write them, and the memory that this process may use."""

from __future__ import annotations

import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uswap.sizes import (
    AvailableMemory,
    available_memory,
    format_size,
    is_bool,
    parse_integer,
    parse_size,
)

GIB = 1 << 30


def test_parse_integer() -> None:
    """An integer of any type is one; a truth value, NumPy's too, is none, nor is a float or text."""
    for value in (7, np.int64(7), np.uint8(7), np.array(7)):
        found = parse_integer(value, "offset")
        assert (found, type(found)) == (7, int)
    for wrong in (True, np.True_, 7.0, np.float64(7), "7", None, [7], np.arange(2)):
        with pytest.raises(TypeError, match=r"offset=.*; accepted: int, None$"):
            parse_integer(wrong, "offset", "int, None")
    assert is_bool(np.True_)
    assert is_bool(False)
    assert not is_bool(1)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (4096, 4096),
        (np.int64(4096), 4096),
        (np.uint8(7), 7),
        ("123", 123),
        ("123B", 123),
        (" 2 GiB ", 2 * GIB),
        ("2GiB", 2 * GIB),
        ("2gib", 2 * GIB),
        ("2GB", 2 * 10**9),
        ("2 gb", 2 * 10**9),
        ("1.5KiB", 1536),
        (".5MiB", 1 << 19),
        ("16kB", 16_000),
        ("16KB", 16_000),
        ("16KiB", 16_384),
        ("3MB", 3 * 10**6),
        ("1TiB", 1 << 40),
        ("1TB", 10**12),
        ("0.1GB", 10**8),
    ],
)
def test_parse_bytes(value: object, size: int) -> None:
    """Integers are bytes; text has a binary or a decimal unit, or none for bytes."""
    assert parse_size(value, "limit") == size


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0.5, 500),
        (1.0, 1000),
        (np.float32(0.25), 250),
        (np.float64(0.25), 250),
        (Fraction(1, 3), 333),
        ("0.25", 250),
        ("1.0", 1000),
        (1, 1),
        ("1", 1),
    ],
)
def test_parse_fraction(value: object, size: int) -> None:
    """A float, or text with a decimal point, is a fraction of the base; 1 and "1" are a byte."""
    assert parse_size(value, "limit", base=lambda: 1000) == size


def test_fraction_is_rounded_down_to_a_multiple() -> None:
    """Nobody computes a fraction to the page, so it is rounded; a size given in bytes is not."""
    assert parse_size(0.5, "limit", base=lambda: 10_000, multiple=4096) == 4096
    with pytest.raises(ValueError, match="limit=5000 is not a multiple of 4 KiB"):
        parse_size(5000, "limit", multiple=4096)


def test_base_is_called_only_for_a_fraction() -> None:
    """Finding out how much memory there is costs something, so it is done when it is needed."""
    assert parse_size("1GiB", "limit", base=lambda: pytest.fail("called")) == GIB


@pytest.mark.parametrize(
    "value",
    [
        *("", "GiB", "-1", "-1GiB", "1e9", "0x10", "1_000", "1,5GiB", "two GiB", "1 2", "1..5"),
        *("2 XiB", "50%", "1GiBs", "nan", "inf"),
        "\u0661GiB",  # an Arabic digit, which int() would take
    ],
)
def test_refuse_text(value: str) -> None:
    """Text that is not a size is a ValueError that names argument, value and what is accepted."""
    with pytest.raises(ValueError, match=r"limit='.*' is not a size.*accepted: bytes as an int"):
        parse_size(value, "limit", base=lambda: 1000)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2G", r"'G' alone may mean GB \(1000\) or GiB \(1024\)"),
        ("512k", "'k' alone may mean KB"),
        ("2Gb", "'Gb' means bits"),
        ("2Gib", "'Gib' means bits"),
    ],
)
def test_refuse_ambiguous(value: str, reason: str) -> None:
    """A unit that is read in two ways is refused, and the message says which two."""
    with pytest.raises(ValueError, match=reason):
        parse_size(value, "limit")


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, 2e9, float("nan"), float("inf"), "0.0", "1.5"])
def test_refuse_fraction_out_of_range(value: object) -> None:
    """A fraction is above 0 and at most 1."""
    with pytest.raises(ValueError, match=r"limit=.* a fraction is above 0 and at most 1"):
        parse_size(value, "limit", base=lambda: 1000)


def test_refuse_fraction_without_base() -> None:
    """Where a fraction has no meaning a float is a TypeError and "0.5" a ValueError."""
    with pytest.raises(TypeError, match=r"size=0\.5 is not a size but a float"):
        parse_size(0.5, "size")
    with pytest.raises(ValueError, match=r"size='0\.5' is not a size: it has no unit"):
        parse_size("0.5", "size")


@pytest.mark.parametrize("value", [True, False, None, b"1GiB", [1], 1j, Decimal(1), np.bool_(True)])
def test_refuse_type(value: object) -> None:
    """What is of another kind is a TypeError, a bool included."""
    with pytest.raises(TypeError, match=r"limit=.* is not a size but a \w+; accepted: bytes"):
        parse_size(value, "limit", base=lambda: 1000)


@pytest.mark.parametrize("value", [-1, np.int32(-5)])
def test_refuse_negative(value: object) -> None:
    """A negative number of bytes is a ValueError."""
    with pytest.raises(ValueError, match=r"limit=.* is negative"):
        parse_size(value, "limit")


def test_bounds() -> None:
    """Minimum and maximum are themselves accepted, and the message shows them."""
    bounds = {"minimum": 4096, "maximum": 8192}
    assert parse_size("4KiB", "block", **bounds) == 4096
    assert parse_size("8KiB", "block", **bounds) == 8192
    with pytest.raises(ValueError, match=r"block=4095 is too small.*from 4 KiB to 8 KiB"):
        parse_size(4095, "block", **bounds)
    with pytest.raises(ValueError, match=r"block='9KiB' \(9216 bytes\) is too large"):
        parse_size("9KiB", "block", **bounds)
    with pytest.raises(ValueError, match=r"pool=0 is too small.*at least 64 KiB"):
        parse_size(0, "pool", minimum=65536)
    with pytest.raises(ValueError, match=r"x=2 is too large.*at most 1 B"):
        parse_size(2, "x", maximum=1)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (16384, "16 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (GIB, "1 GiB"),
        (5 * GIB // 2, "2.5 GiB"),
        (3 << 40, "3 TiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_format(n: int, text: str) -> None:
    """A size is shown in the largest unit that fits, with at most one decimal."""
    assert format_size(n) == text


@given(st.integers(0, 1 << 60))
def test_format_is_parsed_again(n: int) -> None:
    """What is shown can be given, and is right to within its last decimal."""
    text = format_size(n)
    again = parse_size(text, "n")
    if "." in text:
        assert abs(again - n) <= n * 0.06
    else:
        assert again == n


# ---- available_memory, on made-up machines


class Machine:
    """A made-up root directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:   1 kB\n")  # 16 GiB

    def write(self, path: str, text: str) -> None:
        """Make a file below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def v2(self, cgroup: str, mount_root: str = "/", point: str = "/sys/fs/cgroup") -> None:
        """Put the process into a cgroup of version 2."""
        self.write("proc/self/cgroup", f"0::{cgroup}\n")
        self.write(
            "proc/self/mountinfo",
            "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
            f"30 22 0:26 {mount_root} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        )

    def v1(self, cgroup: str, mount_root: str = "/") -> None:
        """Put the process into a cgroup of version 1; version 2 is mounted without controllers."""
        self.write(
            "proc/self/cgroup", f"9:cpu,cpuacct:/x\n4:memory:{cgroup}\n1:name=systemd:/\n0::/\n"
        )
        self.write(
            "proc/self/mountinfo",
            "31 22 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
            f"32 22 0:31 {mount_root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "33 22 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A made-up machine with 16 GiB and no cgroups."""
    return Machine(tmp_path)


def test_host_only(machine: Machine) -> None:
    """Without cgroups it is the host's memory, however little of it is free."""
    assert available_memory(machine.root) == AvailableMemory(16 * GIB, "/proc/meminfo")


def test_nothing_readable(tmp_path: Path) -> None:
    """Without /proc the C library is asked."""
    memory = available_memory(tmp_path)
    assert memory.source == "sysconf"
    assert memory.bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_v2_own_limit(machine: Machine) -> None:
    """The limit of the process's own cgroup counts."""
    machine.v2("/app")
    machine.write("sys/fs/cgroup/app/memory.max", f"{2 * GIB}\n")
    machine.write("sys/fs/cgroup/app/memory.high", "max\n")
    expected = AvailableMemory(2 * GIB, "/sys/fs/cgroup/app/memory.max")
    assert available_memory(machine.root) == expected


def test_v2_high_counts(machine: Machine) -> None:
    """Above memory.high the kernel slows the process down, so it is a limit too."""
    machine.v2("/app")
    machine.write("sys/fs/cgroup/app/memory.max", f"{2 * GIB}\n")
    machine.write("sys/fs/cgroup/app/memory.high", f"{GIB}\n")
    assert available_memory(machine.root) == (GIB, "/sys/fs/cgroup/app/memory.high")


def test_v2_ancestor_limit(machine: Machine) -> None:
    """A limit further up binds too; levels without a file, or with "max", do not."""
    machine.v2("/a/b/c")
    machine.write("sys/fs/cgroup/a/memory.max", f"{GIB}\n")
    machine.write("sys/fs/cgroup/a/b/memory.max", "max\n")
    machine.write("sys/fs/cgroup/a/b/c/memory.max", f"{3 * GIB}\n")
    assert available_memory(machine.root) == (GIB, "/sys/fs/cgroup/a/memory.max")


def test_v2_larger_than_the_host(machine: Machine) -> None:
    """A limit above the host's memory changes nothing."""
    machine.v2("/app")
    machine.write("sys/fs/cgroup/app/memory.max", f"{64 * GIB}\n")
    assert available_memory(machine.root).source == "/proc/meminfo"


@pytest.mark.parametrize(
    ("cgroup", "mount_root"),
    [
        ("/", "/"),  # in a cgroup namespace
        ("/docker/abc", "/docker/abc"),  # without one, the container's part is mounted
        ("/docker/abc", "/elsewhere"),  # the path cannot be seen from here
        ("/../other", "/"),  # the process was moved out of the namespace's root
    ],
)
def test_container_sees_its_part_only(machine: Machine, cgroup: str, mount_root: str) -> None:
    """What is mounted at the mount point counts, whatever the path is called outside."""
    machine.v2(cgroup, mount_root)
    machine.write("sys/fs/cgroup/memory.max", f"{GIB}\n")
    assert available_memory(machine.root) == (GIB, "/sys/fs/cgroup/memory.max")


def test_mount_root_above_the_cgroup(machine: Machine) -> None:
    """A part of the hierarchy is mounted, and the process is in a cgroup inside of it."""
    machine.v2("/docker/abc/job", "/docker/abc")
    machine.write("sys/fs/cgroup/job/memory.max", f"{GIB}\n")
    assert available_memory(machine.root) == (GIB, "/sys/fs/cgroup/job/memory.max")


def test_mount_point_with_a_blank(machine: Machine) -> None:
    """A blank in a mount point is escaped in mountinfo."""
    machine.v2("/app", point="/mnt/c\\040group")
    machine.write("mnt/c group/app/memory.max", f"{GIB}\n")
    assert available_memory(machine.root) == (GIB, "/mnt/c group/app/memory.max")


def test_cgroup_with_a_colon(machine: Machine) -> None:
    """A cgroup's name may have colons."""
    machine.v2("/run-x:y:z.scope")
    machine.write("sys/fs/cgroup/run-x:y:z.scope/memory.max", f"{GIB}\n")
    assert available_memory(machine.root).bytes == GIB


def test_v1_limits_are_hierarchical(machine: Machine) -> None:
    """Under v1 own and ancestors' limits count; "no limit" is a huge number."""
    machine.v1("/a/b")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{GIB}\n")
    machine.write("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n")
    assert available_memory(machine.root) == (GIB, "/sys/fs/cgroup/memory/a/memory.limit_in_bytes")


def test_v1_unlimited(machine: Machine) -> None:
    """With nothing but the huge number it is the host's memory."""
    machine.v1("/")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert available_memory(machine.root) == (16 * GIB, "/proc/meminfo")


@pytest.mark.parametrize("text", ["", "\n", "garbage", "-1", "1 2", "\udcff"])
def test_garbage_is_passed_over(machine: Machine, text: str) -> None:
    """A file with something else in it than a number is no limit."""
    machine.v2("/app")
    machine.write("sys/fs/cgroup/app/memory.max", "1")
    path = machine.root / "sys/fs/cgroup/app/memory.max"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert available_memory(machine.root).source == "/proc/meminfo"


@pytest.mark.parametrize(
    "mountinfo", ["", "\n\n", "x - y", "1 2 3 4 5 6", "1 2 3 / / rw - cgroup2"]
)
def test_broken_mountinfo(machine: Machine, mountinfo: str) -> None:
    """Lines that are not understood are passed over."""
    machine.v2("/app")
    machine.write("proc/self/mountinfo", mountinfo)
    assert available_memory(machine.root).bytes == 16 * GIB


def test_this_machine() -> None:
    """On the machine at hand the answer is positive and at most what the C library says."""
    memory = available_memory()
    assert 0 < memory.bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert Path(memory.source).exists()


def test_free_memory(tmp_path: Path) -> None:
    """What the process may still take: the least of the host's and of its cgroups, cache given back."""
    from uswap.sizes import free_memory

    def put(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n")
    assert free_memory(tmp_path) == (512 << 20, "/proc/meminfo")
    put("proc/self/cgroup", "0::/job\n")
    put("proc/self/mountinfo", "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    put("sys/fs/cgroup/job/memory.max", "104857600\n")
    put("sys/fs/cgroup/job/memory.current", "94371840\n")
    put("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 4194304\nactive_file 7\n")
    assert free_memory(tmp_path) == (14 << 20, "/sys/fs/cgroup/job/memory.max")
    put("sys/fs/cgroup/job/memory.current", "204857600\n")
    assert free_memory(tmp_path).bytes == 0
    put("sys/fs/cgroup/job/memory.max", "max\n")
    assert free_memory(tmp_path).source == "/proc/meminfo"
    put("proc/self/cgroup", "9:memory:/old\n")
    put("proc/self/mountinfo", "30 24 0:26 / /cg/memory rw - cgroup cgroup rw,memory\n")
    put("cg/memory/old/memory.limit_in_bytes", "1048576\n")
    put("cg/memory/old/memory.usage_in_bytes", "524288\n")
    assert free_memory(tmp_path).bytes == 524288
