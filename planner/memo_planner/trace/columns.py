"""Columns of whole numbers, checked value by value at the speed of numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memo_planner.errors import InvalidInput

Column = npt.NDArray[np.int64]


def int_column(
    name: str, values: Sequence[Any] | npt.NDArray[Any], least: int, most: int
) -> Column:
    """`values` as int64 [n], each from `least` to `most`; an array of its own, not to be written.

    Raises: InvalidInput naming the first value that is no whole number or out of range.
    """
    column = _whole_numbers(name, values)
    wrong = (column < least) | (column > most)
    if wrong.any():
        at = int(wrong.argmax())
        raise InvalidInput(
            f"{name}[{at}] is {int(column[at]):,}; it must be from {least:,} to {most:,}"
        )
    column.setflags(write=False)
    return column


def _whole_numbers(name: str, values: Sequence[Any] | npt.NDArray[Any]) -> Column:
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise InvalidInput(f"{name} has {values.ndim} dimensions; it must have one")
        if values.dtype.kind in "iu" and not (values.dtype == np.uint64 and _is_over(values)):
            return values.astype(np.int64)
        values = values.tolist()
    elif not isinstance(values, list | tuple):
        raise InvalidInput(f"{name} is a {type(values).__name__}; it must be a list")
    if set(map(type, values)) - {int}:
        at, value = next((i, v) for i, v in enumerate(values) if type(v) is not int)
        raise InvalidInput(f"{name}[{at}] is {_shown(value)}; it must be a whole number")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        at, value = next((i, v) for i, v in enumerate(values) if not -(2**63) <= v < 2**63)
        raise InvalidInput(f"{name}[{at}] is {_shown(value)}; it is far too large") from None


def _is_over(values: npt.NDArray[np.uint64]) -> bool:
    return bool(values.size) and int(values.max()) >= 2**63


def _shown(value: object) -> str:
    # An int of thousands of digits has no short repr, and Python refuses to make a long one.
    text = "a number of over 60 digits" if _is_huge(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and abs(value) >= 10**60
