"""Where every buffer goes, and how good that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memo_planner.errors import InvalidInput, MemoError
from memo_planner.layout.problem import Int64s, PackingProblem


class NoPlacement(MemoError):
    """No placement within a capacity exists, or none was found in the time given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Offsets of a problem's buffers.

    Attributes:
        offset_bytes: int64 [buffers].
        lower_bound_bytes: no placement has a lower peak.
        seconds: time spent on finding it.
        nodes: nodes of exact search; 0 if heuristics were enough.
    """

    problem: PackingProblem
    offset_bytes: Int64s
    lower_bound_bytes: int
    seconds: float
    nodes: int

    def __post_init__(self) -> None:
        if self.offset_bytes.shape != (len(self.problem),):
            raise InvalidInput(
                f"{self.offset_bytes.shape} offsets for {len(self.problem):,} buffers"
            )
        self.offset_bytes.flags.writeable = False

    @property
    def peak_bytes(self) -> int:
        """Highest end of a buffer, padding included."""
        return int(np.max(self.offset_bytes + self.problem.padded_bytes, initial=0))

    @property
    def gap(self) -> float:
        """Share by which the peak may be above the lowest possible one; 0.0 is proof of optimum."""
        return (self.peak_bytes - self.lower_bound_bytes) / max(1, self.lower_bound_bytes)
