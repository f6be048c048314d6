# SPDX-License-Identifier: MIT
"""Measurements: what uswap costs, beside what the same machine does without it in the same run.

Each module measures one thing and returns plain data; commands choose what to measure, reporters
render it. What is compared is measured in alternating rounds, since a machine's speed drifts, and
each figure is the median of its rounds, shown with the lowest and the highest of them.
"""
