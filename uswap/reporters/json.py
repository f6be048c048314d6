# SPDX-License-Identifier: MIT
"""JSON, for programs."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["render"]


def render(data: Any) -> str:
    """Return `data` (what JSON can carry) as indented JSON."""
    return json.dumps(data, indent=2)
