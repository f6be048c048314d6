# SPDX-License-Identifier: MIT
"""Traces: what was recorded of a paged program, and what other policies would have made of it.

``file`` writes and reads traces, ``patterns`` makes accesses without a program, ``policies`` are the
policies for replacement, ``simulate`` replays accesses through them, ``reuse`` measures how far apart the
accesses to a block are.
"""

from .file import NotATrace, Region, Trace, TraceFile, create, read

__all__ = ["NotATrace", "Region", "Trace", "TraceFile", "create", "read"]
