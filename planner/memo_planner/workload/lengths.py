"""Sequence lengths as people write them: 4096, 64K, 1M. K and M are binary."""

from __future__ import annotations

import re

from memo_planner.errors import InvalidInput
from memo_planner.policy import MAX_TOKENS

_UNITS = {"": 1, "k": 2**10, "m": 2**20}


def parse_tokens(text: str) -> int:
    """Tokens of a length such as `65536`, `64K` or `1M` (1,048,576). Raises: InvalidInput."""
    match = re.fullmatch(r"([0-9][0-9_,]{0,20}(?:\.[0-9]{1,9})?)([kKmM]?)", text.strip())
    if match is None:
        raise InvalidInput(f"length {text!r} is not a number of tokens such as 65536, 64K or 1M")
    tokens = float(match[1].replace(",", "").replace("_", "")) * _UNITS[match[2].lower()]
    if tokens != int(tokens) or not 1 <= tokens <= MAX_TOKENS:
        raise InvalidInput(
            f"length {text!r} is {tokens:,} tokens; it must be a whole number from 1 to "
            f"{MAX_TOKENS:,}"
        )
    return int(tokens)


def format_tokens(tokens: int) -> str:
    """`1M` or `64K` where that is exact, else the number."""
    if tokens and tokens % _UNITS["m"] == 0:
        return f"{tokens // _UNITS['m']}M"
    if tokens and tokens % _UNITS["k"] == 0:
        return f"{tokens // _UNITS['k']}K"
    return f"{tokens:,}"
