"""Checks of figures, used by the planner's data types."""

from __future__ import annotations

import math
from typing import Any

from memo_planner.errors import InvalidInput

LARGEST = 2**60
"""No byte count, rate or time may be larger; it keeps every product of two figures finite."""


def check_int(name: str, value: object, least: int, most: int = LARGEST) -> None:
    """Accept an int (no bool) in `[least, most]`. Raises: InvalidInput."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(f"{name} is {value!r} ({type(value).__name__}); it must be an int")
    if not least <= value <= most:
        raise InvalidInput(f"{name} is {value:,}; it must be from {least:,} to {most:,}")


def check_number(name: str, value: object, *, least: float = 0.0, most: float = LARGEST) -> float:
    """A finite number of `least` or more, as a float. Raises: InvalidInput."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{name} is {value!r} ({type(value).__name__}); it must be a number")
    if not math.isfinite(value) or value > most:
        raise InvalidInput(f"{name} is {value}; it must be finite and at most {most:,}")
    if value < least:
        raise InvalidInput(f"{name} is {value}; it must be {least:g} or more")
    return float(value)


def check_fields(
    record: Any, names: tuple[str, ...], *, least: float = 0.0, most: float = LARGEST
) -> None:
    """Check the named number fields of a frozen dataclass and store them as floats.

    Raises: InvalidInput, naming class and field.
    """
    for name in names:
        label = f"{type(record).__name__}.{name}"
        number = check_number(label, getattr(record, name), least=least, most=most)
        object.__setattr__(record, name, number)


def check_text(name: str, value: object) -> None:
    """Accept a non-empty string. Raises: InvalidInput."""
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{name} is {value!r}; it must be a non-empty string")
