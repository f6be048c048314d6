# SPDX-License-Identifier: MIT
"""uswap beside the kernel's own swap, a mapped file, a naive pager and memory without a limit.

All have the same data, the same limit on what is resident, and the same workloads (see subject.py), each
in a process of its own. They take turns: in each round every peer is measured once, and a ratio is the
median of the ratios of the rounds.

    pooled    data that are out stay in RAM, compressed: uswap's pool, zram, the naive pager
    disk      data that are out fill a small pool, and what the pool has no room for is on a disk: zswap
              before a swap file, uswap with a pool as large as zswap's before its own, np.memmap

The kernel's peers and np.memmap run in a memory cgroup with the limit; uswap and the naive pager keep the
limit themselves. Plain memory has none: it says how far all of them are from having enough.

Where the data fit into the limit, uswap is measured beside plain memory too, in turn in one process.

``comparison`` says what is compared, ``figures`` what is measured of it, ``goals`` what is wanted,
``result`` what was found. ``case`` sets a peer up, ``process`` has its workloads run, and ``runner`` has all
of them take their turns.
"""

from ..subject import WORKS
from .case import Case, Column, cases_of, columns_of
from .comparison import GROUP_WORK, GROUPS, LEAST, PEERS, Peers
from .figures import ROWS, Row, Run
from .goals import FIT_GOALS, GOALS, PROGRAM_GOALS, Goal, Verdict
from .process import SubjectFailed, run_subject
from .result import Result
from .runner import TRIES, measure

__all__ = [
    "FIT_GOALS",
    "GOALS",
    "GROUPS",
    "GROUP_WORK",
    "LEAST",
    "PEERS",
    "PROGRAM_GOALS",
    "ROWS",
    "TRIES",
    "WORKS",
    "Case",
    "Column",
    "Goal",
    "Peers",
    "Result",
    "Row",
    "Run",
    "SubjectFailed",
    "Verdict",
    "cases_of",
    "columns_of",
    "measure",
    "run_subject",
]
