# SPDX-License-Identifier: MIT
"""What turns data into something to look at. A reporter neither measures nor decides anything."""
