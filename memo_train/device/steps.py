"""Steps at planned addresses, whichever device serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

Column: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]

OUTSIDE = -1
"""The offset of a request that is not in the planned range: it lives on after the step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepAddresses:
    """Addresses for the requests of a step, in the order in which they come.

    size_bytes: of each request, as the device rounds it. offset_bytes: from the start of the
    planned range, or `OUTSIDE`. Both int64 [n], multiples of the device's alignment.
    mark_values: numbers of the places the step comes to, in order; mark_firsts: how many requests
    are before each mark: int64 [m].
    """

    size_bytes: Column
    offset_bytes: Column
    mark_values: Column
    mark_firsts: Column

    @property
    def num_planned(self) -> int:
        """Requests that have an address."""
        return int((self.offset_bytes != OUTSIDE).sum())

    @property
    def peak_bytes(self) -> int:
        """End of the highest planned request."""
        ends = np.where(self.offset_bytes == OUTSIDE, 0, self.offset_bytes + self.size_bytes)
        return int(ends.max(initial=0))

    def pairs(self, outside: int) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.uint64]], ...]:
        """Bytes and offset of each request, and value and first of each mark: [n, 2], [m, 2].

        outside: what stands for `OUTSIDE`.
        """
        offsets = self.offset_bytes.astype(np.uint64)
        offsets[self.offset_bytes == OUTSIDE] = outside
        return (
            np.column_stack([self.size_bytes.astype(np.uint64), offsets]),
            np.column_stack([self.mark_values, self.mark_firsts]).astype(np.uint64),
        )


class StepLayout(Protocol):
    """`StepAddresses` as a device takes them."""

    @property
    def peak_bytes(self) -> int:
        """End of the highest planned request."""


class Departure(Protocol):
    """What a step did that its layout did not foresee; `in_use`: only its address was taken."""

    bytes: int
    expected_bytes: int
    place: int
    in_use: bool
    op: str


class ReplayCounts(Protocol):
    """What became of a step's requests; the fields are those of csrc/memory/replay.h."""

    planned: int
    outside: int
    small: int
    departed: int
    missing: int
    given_up: bool

    @property
    def first(self) -> Departure | None:
        """The first departure."""
