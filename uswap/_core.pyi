# SPDX-License-Identifier: MIT
# What cffi generates from csrc/uswap.h. That header is the manual.
from typing import Any

ffi: Any
lib: Any
