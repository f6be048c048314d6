# SPDX-License-Identifier: MIT
"""One run of the computation, in a process of its own, which tells what happens as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flights_computation import PHASES, Empty, Flights
from flights_memory import Result, memory_of


class Teller:
    """Writes what happens as lines of JSON."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase: str | None = None
        self._since = self._last = 0.0

    def write(self, **event: Any) -> None:
        """One line, in one piece, so that threads do not mix."""
        line = memoryview(json.dumps({"at": time.monotonic(), **event}).encode() + b"\n")
        while line:
            line = line[os.write(1, line) :]

    def __call__(self, phase: str, done: float) -> None:
        """See Flights."""
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._since = phase, now
        elif done < 1.0 and now < self._last + 0.05:
            return
        self._last = now
        self.seconds[phase] = now - self._since
        self.write(phase=phase, done=done)


def work(spec: Mapping[str, Any]) -> None:
    """One run; `spec` says which."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is to be brought back then
    tell = Teller()
    with contextlib.ExitStack() as stack:
        pager: Any = None
        empty: Empty = np.empty
        if spec["paged"]:
            import uswap

            try:
                pager = stack.enter_context(uswap.Pager(**spec["pager"]))
            except (uswap.UswapError, ValueError, OSError) as e:
                tell.write(error=str(e))
                return
            empty = pager.empty
            tell.write(pager=pager.pid)
            over = threading.Event()
            sampler = threading.Thread(target=_sample, args=(pager, over, tell), daemon=True)
            sampler.start()
        cpu, began = time.process_time(), time.monotonic()
        flights = Flights(spec["rows"], empty, spec["names"], tell)
        flights.fill(Path(spec["base"]), spec["seed"])
        flights.derive()
        flights.means()
        flights.sort()
        flights.gather()
        flights.medians()
        result: Result = {
            "digests": flights.digests(),
            "tables": flights.tables,
            "phases": tell.seconds,
            "seconds": time.monotonic() - began,
            "cpu_seconds": time.process_time() - cpu,
            "array_bytes": sum(array.nbytes for array in flights.arrays.values()),
        }
        if pager is not None:
            over.set()
            sampler.join()
            result["stats"] = asdict(pager.stats())
            result["about"] = {**pager.about(), "block": pager.options.block}
        # What nobody refers to is given up at the end, not brought back.
        del flights
    result["peak_rss"] = memory_of("self")["peak"]
    tell.write(result=result)


def _sample(pager: Any, over: threading.Event, tell: Teller) -> None:
    while not over.wait(0.05):
        stats = pager.stats()
        tell.write(
            resident=stats.resident,
            raw=stats.pooled_raw,
            pooled=stats.pooled,
            kept=stats.kept,
            allocated=stats.pool_allocated,
            stored=stats.stored,
            stored_raw=stats.stored_raw,
            swap_used=stats.swap_used,
        )
