# SPDX-License-Identifier: MIT
"""Objects of the core that end with a Python object, without a line of Python: see csrc/owned.c."""

from __future__ import annotations

import ctypes
from typing import Any

from ._core import ffi, lib

__all__ = ["Owned"]

_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def _address(function: str) -> int:
    return int(ffi.cast("uintptr_t", ffi.addressof(lib, function)))


_DESTRUCTORS = {
    kind: _address(f"us_owned_{kind}") for kind in ("client", "registration", "pin", "ticket")
}


class Owned:
    """Has an object of the core, which is freed when this is.

    Args:
        kind: "client", "registration", "pin" or "ticket".
        pointer: to it; from here on this object's.

    Attributes:
        pointer: for calls.

    Raises:
        MemoryError: pointer is NULL.
    """

    __slots__ = ("_capsule", "pointer")

    def __init__(self, kind: str, pointer: Any) -> None:
        if pointer == ffi.NULL:
            raise MemoryError
        self.pointer = pointer
        self._capsule = _new(int(ffi.cast("uintptr_t", pointer)), b"uswap", _DESTRUCTORS[kind])
