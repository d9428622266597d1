"""Checks of what callers hand to the device, before anything is changed."""

import math
import operator
from numbers import Real
from typing import SupportsIndex

from memo_train.device.errors import InvalidDeviceArgument


def positive(name: str, value: SupportsIndex, way_out: str = "") -> int:
    """`value` as an int in [1, 2**63), else InvalidDeviceArgument; `way_out` ends its message."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or not 0 < number < 1 << 63:
        raise InvalidDeviceArgument(
            f"{name} must be a positive whole number below 2**63, got {value!r}{way_out}"
        )
    return number


def cap_bytes(name: str, value: int | None) -> int | None:
    """`value` if it is None (no cap) or positive."""
    return None if value is None else positive(name, value, "; None means no cap")


def bytes_per_s(name: str, value: float | None) -> float | None:
    """`value` if it is None (no limit) or finite and positive."""
    if value is not None and not (isinstance(value, Real) and math.isfinite(value) and value > 0):
        raise InvalidDeviceArgument(
            f"the {name} bandwidth must be finite and positive, got {value!r} bytes/s; "
            "None means no limit"
        )
    return value
