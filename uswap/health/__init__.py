# SPDX-License-Identifier: MIT
"""What this machine has of what uswap needs: facts are gathered, then judged, then tried out.

The three are apart so that the judging can be tested with the facts of any machine:

    facts = gather()           asks the kernel and the file system; changes nothing
    findings = judge(facts)    pure: what each fact means, what it costs, what mends it
    test = self_test()         a region paged out and in, in a child process under a time limit

The same three for a directory that swap files are to lie in: gather_place(), judge_place(), and
self_test() with it.
"""

from .facts import Codec, Facts, gather
from .finding import Finding, Status, worst
from .judgement import judge
from .place import Place, gather_place, judge_place
from .selftest import SelfTest, self_test

__all__ = [
    "Codec",
    "Facts",
    "Finding",
    "Place",
    "SelfTest",
    "Status",
    "gather",
    "gather_place",
    "judge",
    "judge_place",
    "self_test",
    "worst",
]
