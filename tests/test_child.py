# SPDX-License-Identifier: MIT
"""The child runner, on which all other tests rely: it kills what hangs and sees what is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from child import ID, ChildFailed, LeftBehind, can_run_as, processes_with, run_child

# Starts a process in a session of its own, as a pager is, which lives for so many seconds.
START_ANOTHER = """
import subprocess, sys
another = subprocess.Popen(
    [sys.executable, "-c", "import sys, time; time.sleep(float(sys.argv[1]))", sys.argv[1]],
    start_new_session=True,
)
print(another.pid)
"""


def add(a: int, b: int) -> dict[str, int]:
    """What the children of some tests run."""
    return {"sum": a + b, "pid": os.getpid()}


def fail() -> None:
    """What the child of a test runs."""
    raise ValueError("on purpose")


def gone(pid: int) -> bool:
    """Say whether a process is gone, or dead and only not yet waited for."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_source() -> None:
    """Source text is run with its arguments; output and exit status come back."""
    result = run_child(
        """
        import sys
        print("out", sys.argv[1:])
        print("err", file=sys.stderr)
        sys.exit(3)
        """,
        args=["x", 1],
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (3, "out ['x', '1']\n", "err\n")
    assert not result.timed_out


def test_function() -> None:
    """A function of a test module is called in the child, and its result comes back."""
    answer = run_child(add, args=[2, 3]).json
    assert answer["sum"] == 5
    assert answer["pid"] != os.getpid()


def test_nested_function_is_refused() -> None:
    """A function that the child could not find is refused at once."""
    with pytest.raises(TypeError, match="not at the top level"):
        run_child(lambda: None)


def test_failure_shows_output() -> None:
    """A child that fails fails the test, and shows its traceback."""
    with pytest.raises(ChildFailed, match="ValueError: on purpose"):
        run_child(fail)


def test_signal() -> None:
    """A child that a signal ended has a negative returncode."""
    result = run_child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", check=False)
    assert result.returncode == -9


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import time\ntime.sleep(1000)", id="asleep"),
        pytest.param("while True: pass", id="busy"),
        # re holds the GIL for as long as it searches: nothing in the interpreter could end it.
        pytest.param("import re\nre.match('(a*)*b', 'a' * 100)", id="holding the GIL"),
        pytest.param(
            "import signal\nfor n in (signal.SIGABRT, signal.SIGTERM, signal.SIGINT):\n"
            "    signal.signal(n, signal.SIG_IGN)\n"
            "while True: pass",
            id="ignoring signals",
        ),
    ],
)
def test_hang_is_killed(source: str) -> None:
    """A child that hangs, however it hangs, is killed at its limit."""
    started = time.monotonic()
    with pytest.raises(ChildFailed, match="timed out") as caught:
        run_child(source, timeout=1)
    assert time.monotonic() - started < 30
    assert caught.value.result.timed_out
    assert caught.value.result.returncode < 0


def test_hang_shows_stacks() -> None:
    """At the limit the stacks of all threads are written, even if the GIL is not to be had."""
    result = run_child(
        """
        import re, threading, time
        def waits_here():
            time.sleep(1000)
        def hangs_here():
            re.match("(a*)*b", "a" * 100)
        threading.Thread(target=waits_here).start()
        hangs_here()
        """,
        timeout=1,
        check=False,
    )
    assert result.timed_out
    assert "Fatal Python error: Aborted" in result.stderr
    assert "in hangs_here" in result.stderr
    assert "in waits_here" in result.stderr


def test_hang_kills_the_whole_run() -> None:
    """What the child started is killed with it, in whatever session it is."""
    result = run_child(
        START_ANOTHER + "sys.stdout.flush()\nanother.wait()", args=[1000], timeout=2, check=False
    )
    assert result.timed_out
    assert gone(int(result.stdout))


def test_only_the_run_is_killed() -> None:
    """Processes of others stay, even if they are the same program."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        run_child("import time; time.sleep(1000)", timeout=1, check=False)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_leftover_process_is_found() -> None:
    """A process that outlives the child fails the test, is named, and is killed."""
    with pytest.raises(
        LeftBehind, match=r"processes outlived the child: \d+ .*time\.sleep"
    ) as caught:
        run_child(START_ANOTHER, args=[1000], grace=0.5)
    pid = int(str(caught.value).split("--- stdout\n")[1].split("\n")[0])
    assert gone(pid)


def test_process_that_soon_ends_is_none() -> None:
    """A process that ends within the grace is not left over: a pager ends after its client."""
    run_child(START_ANOTHER, args=[0.3])


def test_leftover_file_is_found() -> None:
    """A file that outlives the child fails the test and is named."""
    with pytest.raises(LeftBehind, match="files outlived the child: left-here"):
        run_child("import os; open(os.environ['TMPDIR'] + '/left-here', 'w').close()")


def test_environment() -> None:
    """Variables are set and removed; the run's own is there."""
    os.environ["USWAP_TEST_REMOVED"] = "1"
    try:
        answer = run_child(
            "import json, os; print(json.dumps(dict(os.environ)))",
            env={"USWAP_TEST_ADDED": "2", "USWAP_TEST_REMOVED": None},
        ).json
    finally:
        del os.environ["USWAP_TEST_REMOVED"]
    assert answer["USWAP_TEST_ADDED"] == "2"
    assert "USWAP_TEST_REMOVED" not in answer
    assert len(answer[ID]) == 32


def test_interpreter_arguments() -> None:
    """The interpreter's own arguments can be given."""
    assert (
        run_child("import sys; print(sys.flags.dev_mode)", python=["-X", "dev"]).stdout == "True\n"
    )


def test_checkout_is_not_imported() -> None:
    """The child imports the installed uswap, not what lies beside tests/."""
    paths: list[Any] = run_child("import json, sys; print(json.dumps(sys.path))").json
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    assert root not in paths
    assert "" not in paths


def test_user() -> None:
    """As root, a child can be run as an ordinary user, who can import uswap."""
    if reason := can_run_as("nobody"):
        pytest.skip(reason)
    answer = run_child(
        "import json, os, uswap; print(json.dumps([os.geteuid(), os.getgroups()]))", user="nobody"
    ).json
    assert answer[0] != 0
    assert 0 not in answer[1]


def test_processes_with() -> None:
    """Processes are found by a variable in their environment, and by its value only."""
    environ = {**os.environ, "USWAP_TEST_FIND": "a"}
    process = subprocess.Popen(["sleep", "1000"], env=environ)
    try:
        end = time.monotonic() + 10
        while not (found := processes_with("USWAP_TEST_FIND", "a")) and time.monotonic() < end:
            time.sleep(0.01)  # in the middle of its exec it has no environment yet
        assert [one.pid for one in found] == [process.pid]
        assert processes_with("USWAP_TEST_FIND", "b") == []
    finally:
        process.kill()
        process.wait()
