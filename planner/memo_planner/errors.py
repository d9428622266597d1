"""The project's exception tree, and byte counts as its messages show them.

`MemoError` is the root; `memo_train.errors` adds to it.
"""

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


def _format_need(need_bytes: int, limit_bytes: int) -> tuple[str, str]:
    """Need and limit in one unit, with enough digits that unequal values look unequal."""
    unit = _unit_of(limit_bytes)
    for digits in (1, 2, 3, 6):
        need, limit = _in_unit(need_bytes, unit, digits), _in_unit(limit_bytes, unit, digits)
        if need != limit or need_bytes == limit_bytes:
            return need, limit
    return f"{need_bytes:,} B", f"{limit_bytes:,} B"


class MemoError(Exception):
    """Root of every error that a user of the project can cause and act on."""


class InvalidInput(MemoError):
    """A figure handed to the planner is out of its range; the message names it and the range."""


class PlanFileError(MemoError):
    """A plan file cannot be read, is of another version, or contradicts itself."""


class SolverError(MemoError):
    """The integer programmes' solver is missing, or ended without a usable answer."""


class PlanInfeasible(MemoError):
    """No plan fits the limits.

    Attributes:
        what: the point of the step or the tensors that are too large, e.g. `block backward`.
        where: `device` or `host`.
        need_bytes: least bytes needed there at this length.
        limit_bytes: the limit it was given.
        max_tokens: longest sequence that fits the same limits; 0 if no sequence does, None where
            one given plan does not fit and other plans might.
        advice: what else would help, or nothing.
    """

    def __init__(
        self,
        what: str,
        where: str,
        need_bytes: int,
        limit_bytes: int,
        max_tokens: int | None,
        advice: str = "",
    ) -> None:
        # All of them, so that the error can be pickled.
        super().__init__(what, where, need_bytes, limit_bytes, max_tokens, advice)
        self.what = what
        self.where = where
        self.need_bytes = need_bytes
        self.limit_bytes = limit_bytes
        self.max_tokens = max_tokens
        self.advice = advice

    def changed(self, *, max_tokens: int | None, advice: str = "") -> PlanInfeasible:
        """The same refusal for another longest sequence, with `advice` beside what it has."""
        every = "; ".join(filter(None, (self.advice, advice)))
        return PlanInfeasible(
            self.what, self.where, self.need_bytes, self.limit_bytes, max_tokens, every
        )

    def __str__(self) -> str:
        need, limit = _format_need(self.need_bytes, self.limit_bytes)
        if self.max_tokens is None:
            way_out = "make a plan for these limits"
        elif self.max_tokens:
            way_out = f"longest sequence that fits: {self.max_tokens:,} tokens"
        else:
            way_out = "no sequence fits, not even one tile of one token: raise the limit"
        # "swapped tensors need", but "loss needs".
        verb = "need" if self.what.endswith("s") and self.what != "loss" else "needs"
        text = f"{self.what} {verb} {need} on the {self.where}, limit {limit}; {way_out}"
        return f"{text}; {self.advice}" if self.advice else text
