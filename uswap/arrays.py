# SPDX-License-Identifier: MIT
"""The part of Pager that makes NumPy arrays; NumPy is imported when the first is made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

from .regions import Regions
from .sizes import Size, parse_integer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import SupportsIndex, TypeVar

    import numpy as np
    import numpy.typing as npt

    from .options import Faults

    Shape = SupportsIndex | Sequence[SupportsIndex]
    Order = Literal["C", "F"]
    T = TypeVar("T", bound=np.generic)

__all__ = ["Arrays"]

_NUMBERS = "iufcmM"  # kinds of dtypes whose items are one number each


class Arrays(Regions):
    """Makes arrays whose memory is a region each."""

    # What numpy.empty says of its dtype: a NumPy type is kept, and so are the four of Python.
    @overload
    def empty(
        self,
        shape: Shape,
        dtype: type[float] | None = ...,
        *,
        order: Order = ...,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[np.float64]: ...
    @overload
    def empty(
        self,
        shape: Shape,
        dtype: type[T] | np.dtype[T],
        *,
        order: Order = ...,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[T]: ...
    @overload
    def empty(
        self,
        shape: Shape,
        dtype: npt.DTypeLike,
        *,
        order: Order = ...,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[Any]: ...
    def empty(
        self,
        shape: Shape,
        dtype: npt.DTypeLike = float,
        *,
        order: Order = "C",
        block: Size | None = None,
        faults: Faults | None = None,
    ) -> npt.NDArray[Any]:
        """Return a paged array of zeros (as from numpy.empty, but nothing is ever uninitialised).

        Args:
            shape: int or a sequence of ints.
            dtype: any type without Python objects.
            order: "C" or "F".
            block, faults: as for region().
        """
        numpy = _numpy()
        self._check_takes()
        kind = numpy.dtype(dtype)
        if kind.hasobject:
            raise TypeError(
                f"dtype={kind} holds Python objects; accepted: types of plain numbers or bytes"
            )
        if order not in ("C", "F"):
            raise ValueError(f"order={order!r} is unknown; accepted: 'C', 'F'")
        sizes = _shape(shape)
        nbytes = kind.itemsize * math.prod(sizes)
        if nbytes == 0:
            return numpy.empty(sizes, kind, order)
        region = self.region(
            nbytes,
            block=block,
            itemsize=kind.itemsize if kind.kind in _NUMBERS else None,
            faults=faults,
        )
        return numpy.ndarray(sizes, kind, buffer=region, order=order)

    zeros = empty

    @overload
    def full(
        self,
        shape: Shape,
        value: T,
        dtype: None = ...,
        *,
        order: Order = ...,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[T]: ...
    @overload
    def full(
        self,
        shape: Shape,
        value: Any,
        dtype: type[T] | np.dtype[T],
        *,
        order: Order = ...,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[T]: ...
    @overload
    def full(
        self,
        shape: Shape,
        value: Any,
        dtype: npt.DTypeLike | None = ...,
        *,
        order: Order = ...,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[Any]: ...
    def full(
        self,
        shape: Shape,
        value: Any,
        dtype: npt.DTypeLike | None = None,
        *,
        order: Order = "C",
        block: Size | None = None,
        faults: Faults | None = None,
    ) -> npt.NDArray[Any]:
        """Return a paged array filled with `value`; the other arguments as for empty()."""
        numpy = _numpy()
        if dtype is None:
            dtype = numpy.asarray(value).dtype
        made: npt.NDArray[Any] = self.empty(shape, dtype, order=order, block=block, faults=faults)
        made[...] = value
        return made

    @overload
    def array(
        self,
        source: npt.NDArray[T],
        dtype: None = ...,
        *,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[T]: ...
    @overload
    def array(
        self,
        source: Any,
        dtype: type[T] | np.dtype[T],
        *,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[T]: ...
    @overload
    def array(
        self,
        source: Any,
        dtype: npt.DTypeLike | None = ...,
        *,
        block: Size | None = ...,
        faults: Faults | None = ...,
    ) -> npt.NDArray[Any]: ...
    def array(
        self,
        source: Any,
        dtype: npt.DTypeLike | None = None,
        *,
        block: Size | None = None,
        faults: Faults | None = None,
    ) -> npt.NDArray[Any]:
        """Return a paged copy of `source` (anything that numpy.asarray takes)."""
        numpy = _numpy()
        source = numpy.asarray(source, dtype)
        fortran = source.flags.f_contiguous and not source.flags.c_contiguous
        made: npt.NDArray[Any] = self.empty(
            source.shape,
            source.dtype,
            order="F" if fortran else "C",
            block=block,
            faults=faults,
        )
        made[...] = source
        return made


def _shape(shape: object) -> tuple[int, ...]:
    """What numpy.empty takes as a shape: an integer, or a sequence of them."""
    accepted = "int or a sequence of ints, each 0 or more"
    dimensions: tuple[object, ...]
    try:
        dimensions = tuple(shape)  # type: ignore[arg-type]
    except TypeError:
        dimensions = (shape,)
    sizes = tuple(parse_integer(n, "shape", accepted) for n in dimensions)
    if any(n < 0 for n in sizes):
        raise ValueError(f"shape={shape} has a negative dimension; accepted: {accepted}")
    return sizes


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as e:
        raise ImportError("arrays need numpy: pip install 'uswap[numpy]'") from e
    return numpy
