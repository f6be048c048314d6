# SPDX-License-Identifier: MIT
"""`uswap doctor`: each shortfall is found, said what it costs, and what mends it."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from uswap.commands import doctor, main
from uswap.health import (
    Codec,
    Facts,
    Finding,
    Place,
    SelfTest,
    Status,
    judge,
    judge_place,
    self_test,
    worst,
)

import seccomp
from child import can_run_as, run_child

HEALTHY = Facts(
    kernel="6.18.0",
    machine="x86_64",
    user="alice",
    root=False,
    in_container=False,
    device_errno=0,
    syscall_errno=errno.EPERM,
    user_mode_errno=0,
    has_wp=True,
    has_move=True,
    has_poison=True,
    has_thread_id=True,
    has_sigbus=True,
    self_advice_errno=0,
    pidfd_errno=0,
    features=0x1FFFF,
    cpus=8,
    memory=8 << 30,
    memory_source="/proc/meminfo",
    address_space=None,
    overcommit=0,
    thp="madvise",
    thp_shmem="never",
    io_uring_errno=0,
    io_uring_disabled=0,
    codecs=(Codec("lz4", "lz4 4.4.5 wheel"), Codec("zstd", "zstandard 0.25.0 wheel")),
    shuffle="SSE2",
)


def judged(**changes: Any) -> tuple[Status, dict[str, Finding]]:
    """The findings by name for a machine that differs from a healthy one."""
    findings = judge(dataclasses.replace(HEALTHY, **changes))
    return worst(findings), {finding.name: finding for finding in findings}


def test_healthy() -> None:
    """A machine that has all is told so, without costs or commands."""
    status, findings = judged()
    assert status is Status.OK
    assert all(not finding.cost and not finding.mend for finding in findings.values())


def test_unprivileged() -> None:
    """User mode only is enough for inline faults; without them the commands name user and device."""
    status, findings = judged(device_errno=errno.EACCES)
    assert status is findings["userfaultfd"].status is Status.OK
    assert "user mode only" in findings["userfaultfd"].value
    status, findings = judged(device_errno=errno.EACCES, has_sigbus=False)
    one = findings["userfaultfd"]
    assert status is one.status is Status.DEGRADED
    assert "user mode only" in one.value
    assert "EACCES" in one.value
    assert "EFAULT" in one.cost
    assert one.mend[0].startswith("sudo setfacl -m u:alice:rw /dev/userfaultfd")
    assert any(
        command.startswith("sudo sysctl vm.unprivileged_userfaultfd=1") for command in one.mend
    )


def test_container_without_the_device() -> None:
    """In a container the device has to be given from outside."""
    status, findings = judged(
        in_container=True, root=True, device_errno=errno.ENOENT, has_sigbus=False
    )
    assert status is Status.DEGRADED
    assert findings["userfaultfd"].mend[0].startswith("docker run --device /dev/userfaultfd")


def test_forbidden_by_a_filter() -> None:
    """Nothing opens, since a filter refuses the call: the device or another profile mends it."""
    status, findings = judged(
        in_container=True, device_errno=errno.ENOENT, user_mode_errno=errno.EPERM
    )
    one = findings["userfaultfd"]
    assert status is one.status is Status.FAILED
    assert any("--device" in command for command in one.mend)
    assert any("seccomp" in command for command in one.mend)
    assert not any("sysctl" in command for command in one.mend)


def test_kernel_without_userfaultfd() -> None:
    """A kernel that was built without it can't be mended by a command."""
    status, findings = judged(
        device_errno=errno.ENOENT, syscall_errno=errno.ENOSYS, user_mode_errno=errno.ENOSYS
    )
    assert status is Status.FAILED
    assert "CONFIG_USERFAULTFD" in findings["userfaultfd"].mend[0]


@pytest.mark.parametrize(
    ("changes", "name", "status", "mend"),
    [
        ({"has_wp": False}, "write protection", Status.FAILED, "5.7"),
        ({"has_move": False}, "UFFDIO_MOVE", Status.DEGRADED, "6.8"),
        ({"has_thread_id": False}, "thread ids", Status.DEGRADED, "4.14"),
        ({"self_advice_errno": errno.EINVAL}, "process_madvise", Status.DEGRADED, "6.13"),
        ({"pidfd_errno": errno.ENOSYS}, "pidfd", Status.FAILED, "5.3"),
        ({"cpus": 1}, "CPUs", Status.DEGRADED, "CPU"),
        ({"address_space": 4 << 30}, "address space", Status.DEGRADED, "ulimit -v unlimited"),
        ({"overcommit": 2}, "overcommit", Status.DEGRADED, "sysctl vm.overcommit_memory=0"),
        ({"thp_shmem": "always"}, "huge pages", Status.DEGRADED, "shmem_enabled"),
        (
            {"codecs": (Codec("lz4", None, ("system liblz4.so.1: it cannot be loaded",)),)},
            "codec lz4",
            Status.DEGRADED,
            "-m pip install lz4",
        ),
        ({"codecs": (Codec("zstd", None),)}, "codec zstd", Status.DEGRADED, "install zstandard"),
    ],
)
def test_shortfall(changes: dict[str, Any], name: str, status: Status, mend: str) -> None:
    """Each shortfall has its severity, its cost and what mends it."""
    whole, findings = judged(**changes)
    one = findings[name]
    assert whole is one.status is status
    assert one.cost
    assert any(mend in command for command in one.mend)


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"io_uring_errno": errno.EPERM, "io_uring_disabled": 2}, "kernel.io_uring_disabled=0"),
        ({"io_uring_errno": errno.EPERM, "io_uring_disabled": 1}, "kernel.io_uring_disabled=0"),
        ({"io_uring_errno": errno.EPERM}, "seccomp=PROFILE.json"),
        ({"io_uring_errno": errno.EPERM, "io_uring_disabled": None}, "seccomp=PROFILE.json"),
        ({"io_uring_errno": errno.ENOSYS, "in_container": True}, "seccomp=PROFILE.json"),
        ({"io_uring_errno": errno.ENOSYS, "io_uring_disabled": None}, "CONFIG_IO_URING"),
        ({"io_uring_errno": errno.ENOMEM}, "ulimit -l"),
    ],
)
def test_io_uring(changes: dict[str, Any], mend: str) -> None:
    """Without io_uring it is threads: why, what that costs, and what mends just that cause."""
    whole, findings = judged(**changes)
    one = findings["io_uring"]
    assert whole is one.status is Status.DEGRADED
    assert errno.errorcode[changes["io_uring_errno"]] in one.value
    assert "threads" in one.value
    disabled = changes.get("io_uring_disabled", 0)
    assert (f"kernel.io_uring_disabled={disabled}" in one.value) == (disabled is not None)
    assert "longer" in one.cost
    assert len(one.mend) == 1
    assert mend in one.mend[0]


# ---- a directory for swap files

GOOD = Place("/data", direct=True, why="aligned so", reserved=True, free=100 << 30, wanted=8 << 30)


@pytest.mark.parametrize(
    ("changes", "name", "status", "said", "mend"),
    [
        ({}, "swap file", Status.OK, "/data: O_DIRECT works, aligned so", ""),
        ({}, "room", Status.OK, "100 GiB free; a swap file takes 8 GiB", ""),
        (
            {"direct": False, "why": "so it is"},
            "swap file",
            Status.DEGRADED,
            "no O_DIRECT, so it is",
            "ext4, xfs",
        ),
        (
            {"direct": False, "in_ram": True},
            "swap file",
            Status.DEGRADED,
            "in RAM (tmpfs)",
            "on a disk",
        ),
        ({"free": 1 << 30}, "room", Status.DEGRADED, "1 GiB free", 'swap="921MiB"'),
        ({"free": 4 << 20}, "room", Status.DEGRADED, "4 MiB free", ""),
        ({"reserved": False}, "room", Status.DEGRADED, "can't be reserved", "fallocate"),
        (
            {"error": "is not there"},
            "swap file",
            Status.FAILED,
            "/data: is not there",
            "/var/tmp",
        ),
    ],
)
def test_place(changes: dict[str, Any], name: str, status: Status, said: str, mend: str) -> None:
    """What a directory lacks is said with what it costs and what mends it."""
    findings = judge_place(dataclasses.replace(GOOD, **changes))
    one = next(finding for finding in findings if finding.name == name)
    assert worst(findings) is one.status is status
    assert said in one.value
    assert bool(one.cost) == (status is not Status.OK)
    assert mend in " ".join(one.mend)
    assert bool(mend) == bool(one.mend)


# ---- the self-test


def test_self_test_that_hangs() -> None:
    """A fault that is not served ends the child at the limit, and is a failure."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    finding = self_test(HEALTHY, limit=0.3, command=command).judge()
    assert finding.status is Status.FAILED
    assert "a fault was not served" in finding.value


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ValueError('so it is')", "ValueError: so it is"),
        ("import os; os.abort()", "SIGABRT"),
        ("raise SystemExit(3)", "status 3"),
    ],
)
def test_self_test_that_breaks(code: str, said: str) -> None:
    """A child that ends badly is a failure that says how."""
    command = [
        sys.executable,
        "-c",
        "import resource as r; r.setrlimit(r.RLIMIT_CORE, (0, 0)); " + code,
    ]
    test = self_test(HEALTHY, command=command)
    assert said in test.error
    assert test.judge().status is Status.FAILED


def test_self_test_with_a_system_call_that_fails() -> None:
    """With a full userfaultfd a system call on evicted memory has to work."""
    bad = SelfTest(uffd="device", system_call_errno=errno.EFAULT)
    assert bad.judge().status is Status.FAILED
    assert SelfTest(uffd="user-mode", system_call_errno=errno.EFAULT).judge().status is Status.OK


# ---- the command


def test_shuffle() -> None:
    """By which instructions bytes are shuffled is said, and is no shortfall."""
    status, findings = judged(shuffle="SSE2")
    assert status is findings["shuffle"].status is Status.OK
    assert findings["shuffle"].value == "built in, by SSE2"


def run_doctor(*argv: str) -> int:
    """Run it, in a child."""
    sys.exit(main(["doctor", *argv]))


def test_here() -> None:
    """On the machine that runs the tests it works; the self-test brings a region back unchanged."""
    result = run_child(run_doctor, args=["--json"], check=False)
    assert result.returncode in (0, 1), result
    answer = json.loads(result.stdout)
    assert answer["exit"] == result.returncode
    findings = {finding["name"]: finding for finding in answer["findings"]}
    assert findings["self-test"]["status"] == "ok"
    assert "pager ready in" in findings["self-test"]["value"]
    assert {"kernel", "userfaultfd", "features", "CPUs", "memory", "codec lz4"} <= set(findings)
    assert findings["shuffle"]["value"] in ("built in, by SSE2", "built in, by AVX2")
    assert findings["userfaultfd"]["status"] == "ok"


def test_swapfile_here(tmp_path: Path) -> None:
    """With --swapfile a region goes through a file in that directory, of which nothing stays."""
    result = run_child(run_doctor, args=["--json", "--swapfile", str(tmp_path)], check=False)
    assert result.returncode in (0, 1), result
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert str(tmp_path) in findings["swap file"]["value"]
    assert "free" in findings["room"]["value"]
    engine = "io_uring" if findings["io_uring"]["status"] == "ok" else "threads"
    assert f"to the swap file by {engine} and came back unchanged" in findings["swap test"]["value"]
    assert findings["swap test"]["status"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_swapfile_in_ram() -> None:
    """tmpfs is looked at and tried like any other, and what it costs is said."""
    result = run_child(run_doctor, args=["--json", "--swapfile", "/dev/shm"], check=False)
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert findings["swap file"]["status"] == "degraded"
    assert "frees no memory" in findings["swap file"]["cost"]
    assert findings["swap test"]["status"] == "ok"


@pytest.mark.parametrize(
    ("path", "said"),
    [("/dev/null", "is not a directory"), ("/nowhere", "does not exist"), ("/proc", "/proc: ")],
)
def test_swapfile_nowhere(path: str, said: str) -> None:
    """Where no swap file can be made nothing is tried, and the status is that of a failure."""
    result = run_child(run_doctor, args=["--json", "--swapfile", path], check=False)
    assert result.returncode == 2, result
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert findings["swap file"]["status"] == "failed"
    assert said in findings["swap file"]["value"]
    assert "swap test" not in findings


def run_refused(error: int, directory: str) -> None:
    """Run it under a filter that refuses io_uring, in a child."""
    seccomp.forbid("io_uring_setup", error)
    run_doctor("--json", "--swapfile", directory)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_io_uring_refused_here(error: int, tmp_path: Path) -> None:
    """Under a filter that refuses io_uring it says so, and that the file is served by threads."""
    result = run_child(run_refused, args=[error, str(tmp_path)], check=False)
    assert result.returncode == 1, result
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)["findings"]}
    assert findings["io_uring"]["status"] == "degraded"
    assert f"refused, {errno.errorcode[error]}" in findings["io_uring"]["value"]
    assert "to the swap file by threads and came back" in findings["swap test"]["value"]


def test_as_an_ordinary_user() -> None:
    """Without privilege it works, and nothing about userfaultfd is to mend."""
    if why := can_run_as("nobody"):
        pytest.skip(why)
    result = run_child(run_doctor, user="nobody", check=False)
    if "user mode only" not in result.stdout:
        pytest.skip("this machine lets every user open a full userfaultfd")
    assert result.returncode in (0, 1), result
    assert "DEGRADED  userfaultfd" not in result.stdout
    assert "EFAULT" not in result.stdout
    assert "went out and came back unchanged" in " ".join(result.stdout.split())
    assert "(user-mode," in " ".join(result.stdout.split())
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, 0), ({"has_move": False}, 1), ({"has_wp": False}, 2)],
)
def test_exit_status(
    changes: dict[str, Any],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0 is well, 1 degraded, 2 cannot work; then nothing is tried."""
    tried = []

    def fake(facts: Facts) -> SelfTest:
        tried.append(facts)
        return SelfTest(start_ms=100, uffd="device")

    monkeypatch.setattr(doctor, "gather", lambda: dataclasses.replace(HEALTHY, **changes))
    monkeypatch.setattr(doctor, "self_test", fake)
    assert main(["doctor"]) == status
    assert bool(tried) == (status < 2)
    out = capsys.readouterr().out
    words = ["all is well", "works, with the shortfalls named", "cannot work here"]
    assert out.rstrip().endswith(words[status])
