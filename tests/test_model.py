# SPDX-License-Identifier: MIT
"""A model: whatever is done to paged memory, in whatever order, a bytearray does the same.

Hypothesis chooses the operations and runs in the child, so that its limit holds when an operation hangs;
the operations are printed as they are begun. Two threads carry them out, each on its own bytes, but these
lie side by side in the same blocks. USWAP_TEST_SEED repeats the choice of operations. What is out lies in a pool,
in a file behind a small one, or in any of three tiers; and one or two servers serve the threads.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Verbosity, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import uswap

import workload
from child import run_child
from workload import KIB, KINDS, MIB

FAULTS_BY = ("inline", "message")

STRIPE = 2741  # bytes; even ones are one thread's, odd ones the other's
LARGEST = 3 * MIB
FILL = 5 * MIB
REGIONS = 4

place = st.floats(0, 1, exclude_max=True, width=32)
length = st.one_of(st.integers(1, 64), st.integers(1, 20_000), st.integers(1, LARGEST))
kind = st.sampled_from(KINDS)
operation = st.one_of(
    st.tuples(st.just("write"), place, length, kind),
    st.tuples(st.just("write"), place, length, kind),
    st.tuples(st.just("read"), place, length),
    st.tuples(st.just("read"), place, length),
    st.tuples(st.just("evict"), place, length),
    st.tuples(st.just("prefetch"), place, length),
    st.tuples(st.just("check"), place, length),
    st.tuples(st.just("migrate"), place, length, st.integers(0, 2)),
    st.tuples(st.just("pinned"), place, st.integers(1, 60_000), kind),
)
operations = st.lists(st.tuples(st.integers(0, REGIONS - 1), operation), min_size=1, max_size=12)


class Held:
    """A region, how it is seen, and what it must hold."""

    def __init__(self, region: Any, view: memoryview) -> None:
        self.region = region
        self.view = view
        self.model = bytearray(view)

    def stripes(self, parity: int, at: int, n: int) -> list[tuple[int, int]]:
        """The parts of a span that belong to a thread."""
        end = min(len(self.view), at + n)
        parts = []
        for k in range(at // STRIPE, -(-end // STRIPE)):
            if k % 2 == parity:
                parts.append((max(at, k * STRIPE), min(end, (k + 1) * STRIPE)))
        return parts


def configured(name: str, pool: int) -> dict[str, Any]:
    """The options of a configuration; `pool` is for where it is the only tier."""
    if name == "file":
        return {"pool": MIB, "segment": "256KiB", "swapfile": "/var/tmp", "swap": "64MiB"}
    if name == "tiers":
        return {
            "tiers": [
                uswap.Pool(MIB),
                uswap.Pool(MIB, codec="zstd", level=1),
                uswap.File("/var/tmp", "64MiB", segment="256KiB"),
            ]
        }
    if name == "servers":
        # Registered at once, else nothing faults where there is room.
        return {"pool": pool, "servers": 2, "register": "early"}
    return {"pool": pool}


#: What all examples of a process have come across, to see that they did what they are for.
seen: Counter[str] = Counter()


class Machine(RuleBasedStateMachine):
    """The operations on a pager and its regions."""

    configuration = "pool"

    def __init__(self) -> None:
        super().__init__()
        print("---- a new example", flush=True)
        self.pager: uswap.Pager | None = None
        self.held: list[Held] = []
        self.left: list[Held] = []  # what outlived its pager
        self.executor = ThreadPoolExecutor(2)
        self.rng = random.Random(1)

    @initialize(
        block=st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB]),
        pool=st.sampled_from([2 * MIB, 32 * MIB]),
        readahead=st.sampled_from([0, MIB]),
        take=st.sampled_from(["move", "copy"]),
    )
    def begin(self, pool: int, **options: Any) -> None:
        """Open the pager."""
        self.options = {"limit": MIB, "workers": 1, **options}
        self.options |= configured(self.configuration, pool)
        print("begin", self.options, flush=True)
        self.pager = uswap.Pager(**self.options)
        self._fill()

    def _fill(self) -> None:
        """More than what is above the last tier has room for, so that each example has bytes in all of them."""
        stored = self.configuration in ("file", "tiers")
        model = workload.data("random" if stored else "text", FILL if stored else 2 * MIB, self.rng)
        region = self.pager.region(len(model))
        view = memoryview(region)
        view[:] = model
        assert view == model

    # ---- what changes the set of regions

    def _room(self) -> bool:
        return len(self.held) < REGIONS

    @precondition(_room)
    @rule(size=st.one_of(st.integers(1, 20_000), st.integers(1, LARGEST)))
    def region(self, size: int) -> None:
        """Make a region."""
        print("region", size, flush=True)
        region = self.pager.region(size)
        self.held.append(Held(region, memoryview(region)))

    @precondition(_room)
    @rule(size=st.integers(9000, LARGEST), kind=kind, head=st.integers(0, 5000))
    def wrap(self, size: int, kind: str, head: int) -> None:
        """Wrap a buffer; its head and tail are ordinary memory."""
        print("wrap", size, kind, head, flush=True)
        buffer = bytearray(workload.data(kind, size + head, self.rng))
        # The inside must hold a whole block.
        block = None if size >= 140_000 else 4 * KIB
        region = self.pager.wrap(memoryview(buffer)[head:], block=block)
        self.held.append(Held(region, memoryview(buffer)))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, REGIONS - 1))
    def unwrap(self, which: int) -> None:
        """Release a region: it goes on as ordinary memory."""
        print("release", which, flush=True)
        held = self.held.pop(which % len(self.held))
        held.region.release()
        assert held.view == held.model
        self.left.append(held)

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, REGIONS - 1))
    def delete(self, which: int) -> None:
        """Let go of a region, with nothing brought back first."""
        print("delete", which, flush=True)
        self.held.pop(which % len(self.held))

    def _count(self) -> None:
        stats = self.pager.stats()
        seen.update({name: int(count) for name, count in stats.faults.items()})
        seen["second"] += stats.second_server
        for tier in stats.tiers:
            seen[f"came {tier.name}"] += tier.came_blocks

    @rule()
    def reopen(self) -> None:
        """Close the pager; arrays stay. Open another."""
        print("reopen", flush=True)
        self.pager.close()
        self._count()
        self.left += self.held
        self.held = []
        for held in self.left:
            assert held.view == held.model
        del self.left[:-3]
        self.pager = uswap.Pager(**self.options)

    # ---- what is done to their bytes

    def _do(self, parity: int, held: Held, what: str, place: float, n: int, *more: Any) -> None:
        rng = random.Random(f"{what}{place}{n}{more}")
        size = len(held.view)
        at = int(place * size)
        if what == "write":
            for start, end in held.stripes(parity, at, n):
                held.model[start:end] = new = workload.data(more[0], end - start, rng)
                held.view[start:end] = new
        elif what == "read":
            for start, end in held.stripes(parity, at, n):
                assert held.view[start:end] == held.model[start:end]
        else:
            region = held.region
            at = int(place * region.length)
            n = min(n, region.length - at)
            if what == "evict":
                region.evict(at, n)
            elif what == "prefetch":
                region.prefetch(at, n)
            elif what == "check":
                region.check(at, n)
            elif what == "migrate":
                self._migrate(region, at, n, int(more[0]))
            else:
                with region.pinned(at, n):
                    self._do(parity, held, "write", place, n, *more)
                    self._do(parity, held, "read", place, n)

    def _migrate(self, region: Any, at: int, n: int, tier: int) -> None:
        names = self.pager.tiers
        try:
            region.migrate(names[tier % len(names)], at, n)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
        else:
            seen["migrated"] += 1

    def _all(self, parity: int, todo: list[Any]) -> None:
        for which, one in todo:
            self._do(parity, self.held[which % len(self.held)], *one)

    @precondition(lambda self: self.held)
    @rule(even=operations, odd=operations)
    def both(self, even: list[Any], odd: list[Any]) -> None:
        """Two threads at once."""
        print("both", even, odd, flush=True)
        futures = [self.executor.submit(self._all, k, todo) for k, todo in enumerate((even, odd))]
        for future in futures:
            future.result()

    @precondition(lambda self: self.held)
    @rule(todo=operations)
    def alone(self, todo: list[Any]) -> None:
        """One thread, on all bytes."""
        print("alone", todo, flush=True)
        for parity in (0, 1):
            self._all(parity, todo)

    # ---- what holds

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, REGIONS - 1))
    def compare(self, which: int) -> None:
        """All of a region is as the model says."""
        print("compare", which, flush=True)
        held = self.held[which % len(self.held)]
        assert held.view == held.model

    @invariant()
    def invariants_hold(self) -> None:
        """The pager's own (E1 to E7)."""
        if self.pager is not None:
            self.pager.check()

    def teardown(self) -> None:
        """Close all, and compare all."""
        if self.pager is not None:
            self.pager.close()
            self._count()
        self.executor.shutdown()
        for held in self.held + self.left:
            assert held.view == held.model


def explore(configuration: str, examples: int, steps: int) -> dict[str, int]:
    """What the child runs."""
    Machine.configuration = configuration
    chosen = int(os.environ.get("USWAP_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"seed {chosen} (USWAP_TEST_SEED={chosen} chooses it)", file=sys.stderr, flush=True)
    machine = seed(chosen)(Machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.normal,
            print_blob=False,
        ),
    )
    print(dict(seen), file=sys.stderr)
    return dict(seen)


@pytest.mark.parametrize("configuration", ["pool", "file", "tiers", "servers"])
@pytest.mark.parametrize(("examples", "steps"), [(6, 12), (1, 36)], ids=["short", "long"])
def test_model(examples: int, steps: int, configuration: str) -> None:
    """Any order of writes, reads, evictions, moves, pins, wraps, releases and closes: no difference."""
    result = run_child(explore, args=[configuration, examples, steps], timeout=300)
    found = result.json
    print(result.stderr.splitlines()[0])
    assert found["pooled"] > 0
    if configuration == "file":
        assert found["stored"] > 0
    elif configuration == "tiers":
        assert found["stored"] > 0
        assert all(found[f"came {name}"] > 0 for name in ("pool2", "file"))
