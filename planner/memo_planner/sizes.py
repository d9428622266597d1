"""Byte counts as people read them."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def _unit_of(num_bytes: float) -> int:
    """Index of the largest binary unit of which `num_bytes` holds at least one."""
    unit = 0
    while unit + 1 < len(_UNITS) and abs(num_bytes) >= 1024 ** (unit + 1):
        unit += 1
    return unit


def _in_unit(num_bytes: float, unit: int, digits: int) -> str:
    shown = 0 if unit == 0 else digits
    return f"{num_bytes / 1024**unit:,.{shown}f} {_UNITS[unit]}"


def format_bytes(num_bytes: float) -> str:
    """`num_bytes` in the largest fitting binary unit with one digit, e.g. `40.0 GiB`."""
    return _in_unit(num_bytes, _unit_of(num_bytes), 1)


def format_need(need_bytes: int, limit_bytes: int) -> tuple[str, str]:
    """Need and limit in one unit, with enough digits that unequal values look unequal."""
    unit = _unit_of(limit_bytes)
    for digits in (1, 2, 3, 6):
        need, limit = _in_unit(need_bytes, unit, digits), _in_unit(limit_bytes, unit, digits)
        if need != limit or need_bytes == limit_bytes:
            return need, limit
    return f"{need_bytes:,} B", f"{limit_bytes:,} B"
