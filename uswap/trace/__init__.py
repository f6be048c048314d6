# SPDX-License-Identifier: MIT
"""Traces: what was recorded of a paged program. ``file`` writes and reads them."""

from .file import NotATrace, Region, Trace, TraceFile, create, read

__all__ = ["NotATrace", "Region", "Trace", "TraceFile", "create", "read"]
