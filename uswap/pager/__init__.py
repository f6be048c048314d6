# SPDX-License-Identifier: MIT
"""The process that owns every decision. It is started by the client: ``python -m uswap.pager FD``."""
