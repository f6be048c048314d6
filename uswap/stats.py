# SPDX-License-Identifier: MIT
"""What stats() returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ._core import ffi, lib
from .sizes import format_size
from .tiers import TierStats

__all__ = ["KINDS", "Latency", "Stats"]

#: Kinds of faults, in the order of US_KIND_*: first touch; one repeated word; on its way out, not
#: yet compressed; decompressed from the pool; first write to a clean block; already there (swapped
#: in by another thread's fault or by read-ahead); had to wait for the mover, a worker or room; read
#: from the swap file.
KINDS = ("empty", "filled", "outbox", "pooled", "protected", "present", "waited", "stored")


@dataclass(frozen=True)
class Latency:
    """Service times of one kind of fault, in nanoseconds.

    From when the pager read the fault's message until it had woken the thread and had the CPU again:
    on one CPU the woken thread runs first, so this is rather too long than too short. Log-linear
    buckets: each value is right within 1/32.
    """

    count: int
    p50: int
    p90: int
    p99: int
    p999: int
    max: int


def _injected(raw: Any) -> dict[str, int]:
    """What the pager process counts, and this one; only what took effect."""
    found = {}
    for i, n in enumerate(raw.injected):
        name = lib.us_injected_name(i)
        if name != ffi.NULL and (count := int(n) + int(lib.us_injected(i))):
            found[ffi.string(name).decode()] = count
    return found


@dataclass(frozen=True)
class Stats:
    """Counters (since the pager began) and gauges (now). Bytes, unless the name says otherwise."""

    limit: int
    pool_budget: int
    regions: int
    """Number of regions."""
    region_bytes: int
    resident: int
    peak_resident: int
    plain: int
    """Of resident: memory that is not registered yet, touched or not (see the option `register`)."""
    outbox: int
    """Taken out, waiting for a worker, uncompressed."""
    pooled_raw: int
    """Blocks in the pools, before compression."""
    pooled: int
    """The same after compression."""
    kept: int
    """Compressed copies of clean resident blocks; in the pools too, and the first to go."""
    pool_used: int
    pool_allocated: int
    """Memory that the pools hold, fragmentation included."""
    filled: int
    """Blocks of one repeated word, which take no memory."""
    stored_raw: int
    """Blocks in the swap file, before compression."""
    stored: int
    """The same after compression."""
    lost: int
    """Blocks that can't be read back: a touch is SIGBUS."""
    swap: int
    """The swap file's size."""
    swap_used: int
    """Bytes of its segments in use."""
    swap_live: int
    """Of these: objects that a block or a clean block's copy is, headers included."""
    written: int
    """Bytes written to the swap file, compaction included."""
    written_segments: int
    written_objects: int
    """Objects written from the pool."""
    written_object_bytes: int
    write_garbage: int
    """Objects that had changed by the time their write was done."""
    rewritten: int
    """Payload bytes that compaction has copied."""
    cleaned_segments: int
    """Segments that compaction has read."""
    cleaned_bytes: int
    """Bytes read for that; not among read_bytes."""
    padding: int
    """Bytes written that hold no object: headers, rounding."""
    reads: int
    read_bytes: int
    read_retries: int
    write_errors: int
    allocations: int
    """Calls for memory by the pager's core, in all its threads."""
    decompressions: int
    """Objects decompressed, for whatever purpose."""
    pinned: int
    faults: Mapping[str, int]
    """Number of faults by kind (see KINDS)."""
    inline_faults: int
    """Of the faults: those that the touching thread resolved by itself."""
    latency: Mapping[str, Latency]
    """Service times by kind."""
    tiers: tuple[TierStats, ...]
    """The tiers, hot to cold."""
    evicted: int
    evicted_blocks: int
    evicted_clean_blocks: int
    """Of the evicted: clean, at no cost."""
    evicted_dirty_blocks: int
    """Of the evicted: dirty, moved out and compressed."""
    readahead_blocks: int
    readahead_empty_blocks: int
    compressed_blocks: int
    compressed_raw: int
    compressed_out: int
    shuffled_blocks: int
    """Of the compressed: their bytes or bits were shuffled first (see the option ``shuffle``)."""
    incompressible_blocks: int
    """Stored as they are."""
    skipped_blocks: int
    """Of these: recognised before time was spent on them."""
    refused_pinned: int
    """Blocks that the kernel would not move: pinned by a device, or shared after a fork."""
    refused_noroom: int
    """Evictions that no tier had room for."""
    over_limit: int
    """Faults served over the limit, since nothing could leave."""
    throttled: int
    """Faults that waited for room."""
    waited_locked: int
    """Faults that waited for their block's lock."""
    copy_retries: int
    move_retries: int
    reclaimed_copies: int
    compactions: int
    compacted: int
    cpu_moves: int
    """How often the loop followed a thread to another CPU."""
    read_batches: int
    messages: int
    second_server: int
    """Of these, the faults that a second thread took while several threads faulted."""
    stray: int
    """Faults at addresses of no region."""
    trace_missed: int
    """Records that the trace lacks (see the option `trace`)."""
    loop_cpu_ns: int
    worker_cpu_ns: int
    injected: Mapping[str, int]
    """How often each failure of the option ``inject`` took effect, here and in the pager process: by system call, and
    "read", "write" (an errno), "read:SHORT", "read:FLIP", "write:LATE" and the like of the swap file."""

    @property
    def ratio(self) -> float:
        """Compression of what is in the pools: bytes before by bytes after; 1.0 when it is empty."""
        return self.pooled_raw / self.pooled if self.pooled else 1.0

    @property
    def density(self) -> float:
        """The part of the pools' memory that holds objects; 1.0 when it holds none."""
        return self.pool_used / self.pool_allocated if self.pool_allocated else 1.0

    @property
    def write_amplification(self) -> float:
        """Bytes written to the swap file by bytes of objects written from the pool; 1.0 when none were."""
        return self.written / self.written_object_bytes if self.written_object_bytes else 1.0

    @property
    def total_faults(self) -> int:
        """Faults of all kinds."""
        return sum(self.faults.values())

    @classmethod
    def read(
        cls, raw: Any, quantile: Callable[[int, float], int], tiers: tuple[TierStats, ...]
    ) -> Stats:
        """Make one from the C struct."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name == "faults":
                values["faults"] = {k: int(raw.faults[i]) for i, k in enumerate(KINDS)}
            elif field.name == "injected":
                values["injected"] = _injected(raw)
            elif field.name == "tiers":
                values["tiers"] = tiers
            elif field.name == "latency":
                values["latency"] = {
                    k: Latency(
                        int(raw.faults[i]),
                        *(quantile(i, q) for q in (0.5, 0.9, 0.99, 0.999, 1.0)),
                    )
                    for i, k in enumerate(KINDS)
                }
            else:
                values[field.name] = int(getattr(raw, field.name))
        return cls(**values)

    def __str__(self) -> str:
        faults = ", ".join(f"{k} {n:,}" for k, n in self.faults.items() if n)
        where = [
            f"resident {format_size(self.resident)} of {format_size(self.limit)} "
            f"(peak {format_size(self.peak_resident)})",
            f"pooled {format_size(self.pooled_raw)} in {format_size(self.pooled)} "
            f"(ratio {self.ratio:.2f})",
        ]
        if self.swap:
            where.append(
                f"stored {format_size(self.stored_raw)} in {format_size(self.stored)} "
                f"(swap file {format_size(self.swap_used)} of {format_size(self.swap)})"
            )
        where.append(f"filled {format_size(self.filled)}")
        if self.lost:
            where.append(f"lost {format_size(self.lost)}")
        trouble = [
            f"{text} {n:,}"
            for text, n in (
                ("faults over the limit", self.over_limit),
                ("evictions without room", self.refused_noroom),
                ("write errors", self.write_errors),
                ("trace records missed", self.trace_missed),
            )
            if n
        ]
        parts = [", ".join(where), f"faults: {faults or 'none'}"]
        parts.append(f"evicted {format_size(self.evicted)}")
        return "; ".join([*parts, *([", ".join(trouble)] if trouble else [])])

    def __repr__(self) -> str:
        return f"<uswap.Stats {self}>"
