# SPDX-License-Identifier: MIT
"""A run watched from outside: what it says of itself, and what the kernel says of its memory."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flights_computation import PHASES
from flights_data import DemoError
from flights_memory import Run, Sample, memory_of
from flights_screen import Progress, size

#: What runs the computation with --run.
PROGRAM = Path(__file__).with_name("flights.py")


class Watch:
    """Watches a run."""

    def __init__(self, name: str, pid: int, progress: Progress) -> None:
        self.name = name
        self.run = Run({})
        self._pid = pid
        self._progress = progress
        self._pager = 0
        self._phase, self._done, self._over = "", 0.0, False
        self._resident = self._stored = 0
        self._began = self._sampled = time.monotonic()

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take in one line of the run's."""
        run = self.run
        if "phase" in event:
            if not self._phase:  # the clock begins here
                self._began = event["at"]
                run.samples.clear()
            self._phase, self._done = event["phase"], event["done"]
            start = run.starts.setdefault(self._phase, event["at"] - self._began)
            if self._done == 1.0:
                self.sample()
                took = event["at"] - self._began - start
                self._progress.phase(self.name, self._phase, took, self._memory())
                self._over = self._phase == list(PHASES)[-1]
        elif "resident" in event:
            self._resident = event["resident"]
            if event["allocated"] >= run.pool.get("allocated", 0):
                run.pool = {key: event[key] for key in ("raw", "pooled", "kept", "allocated")}
            if event["stored"] >= run.file.get("stored", 0):
                run.file = {key: event[key] for key in ("stored", "stored_raw", "swap_used")}
            self._stored = event["stored"]
        elif "pager" in event:
            self._pager = event["pager"]
        elif "result" in event:
            run.result = event["result"]
        elif "error" in event:
            raise DemoError(f"the {self.name} run could not begin: {event['error']}")

    def look(self) -> None:
        """Sample now and then, and show how far it is."""
        now = time.monotonic()
        if now >= self._sampled + 0.045 and not self._over:
            self.sample()
            self._progress.show(
                self.name, self._phase, self._done, now - self._began, self._memory()
            )

    def sample(self) -> None:
        """Read the memory of the process and of its pager."""
        self._sampled = time.monotonic()
        own = memory_of(self._pid)
        if self._over or not own:
            return
        process = own.get("rss", 0)
        pager = 0
        if self._pager:
            pager = memory_of(self._pager).get("rss", 0)
            process -= own.get("shared", 0)  # is in the pager's RSS too
        at = self._sampled - self._began
        self.run.samples.append(Sample(at, process, self._resident, pager))

    def _memory(self) -> str:
        samples = self.run.samples
        text = f"RSS {size(samples[-1].process if samples else 0)}"
        if self._stored:  # then the arrays are at their limit, and the bar needs the room
            return f"{text}, file {size(self._stored)}"
        return f"{text}, arrays {size(self._resident)}" if self._resident else text


def measure(spec: Mapping[str, Any], progress: Progress) -> Run:
    """Do one run in a child process and watch it."""
    name = "paged" if spec["paged"] else "unpaged"
    # Its stderr is ours: what goes wrong there is to be read.
    child = subprocess.Popen(
        [sys.executable, str(PROGRAM), "--run", json.dumps(spec)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert child.stdout is not None
    watch = Watch(name, child.pid, progress)
    rest = b""
    try:
        with selectors.DefaultSelector() as selector, child.stdout:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(0.05):
                    piece = os.read(child.stdout.fileno(), 1 << 20)
                    if not piece:
                        break
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        watch.hear(json.loads(line))
                watch.look()
        status = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        progress.clear()
    result = watch.run.result
    if status or not result:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        hint = "; was there not enough memory? --size makes it smaller" if status == -9 else ""
        raise DemoError(f"the {name} run {how}{hint}")
    progress.say(
        f"{name:<8} done     {result['seconds']:6.1f} s  peak RSS {size(result['peak_rss'])}"
    )
    return watch.run
