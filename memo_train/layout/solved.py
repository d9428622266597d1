"""A recorded step's addresses: solved, checked, and in the form that the device serves."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memo_planner.errors import MemoError
from memo_planner.layout.step import lay_out_step
from memo_planner.layout.validate import faults
from memo_planner.trace.columns import Column
from memo_train import _core
from memo_train.layout.recorded import SMALLEST_BYTES, RecordedStep
from memo_train.trace.places import Place

ALIGNMENT_BYTES = 64
SOLVE_SECONDS = 5.0
OUTSIDE = -1
"""The offset of a request that is not in the planned range: it lives on after the step."""
_REQUEST = np.dtype([("bytes", "<u8"), ("offset", "<u8")])
_MARK = np.dtype([("value", "<u8"), ("first", "<u8")])


@dataclass(frozen=True, kw_only=True, eq=False)
class SolvedStep:
    """Addresses for the requests of a step, in the order in which they come.

    Attributes:
        size_bytes, offset_bytes: of each request; offsets from the start of the planned range, or
            `OUTSIDE`: int64 [n].
        mark_values, mark_firsts: as in `RecordedStep`: int64 [m]. places: what the values mean.
        lower_bound_bytes: most planned bytes that live at once, aligned.
        seconds: that solving took.
    """

    size_bytes: Column
    offset_bytes: Column
    mark_values: Column
    mark_firsts: Column
    places: tuple[Place, ...]
    lower_bound_bytes: int
    seconds: float

    @property
    def num_planned(self) -> int:
        """Requests that have an address."""
        return int((self.offset_bytes != OUTSIDE).sum())

    @property
    def peak_bytes(self) -> int:
        """End of the highest planned request."""
        return self.native.peak_bytes

    @cached_property
    def native(self) -> _core.StepLayout:
        """The layout as the device takes it. Raises: InvalidDeviceArgument."""
        requests = np.empty(len(self.size_bytes), _REQUEST)
        is_outside = self.offset_bytes == OUTSIDE
        requests["bytes"] = self.size_bytes
        requests["offset"] = np.where(is_outside, 0, self.offset_bytes)
        requests["offset"][is_outside] = _core.StepLayout.OUTSIDE
        marks = np.empty(len(self.mark_values), _MARK)
        marks["value"], marks["first"] = self.mark_values, self.mark_firsts
        return _core.StepLayout(requests, marks, SMALLEST_BYTES)


def solve_step(recorded: RecordedStep) -> SolvedStep:
    """The layout with the lowest peak that is found in time. Raises: MemoError."""
    found = lay_out_step(recorded.requests, alignment_bytes=ALIGNMENT_BYTES, seconds=SOLVE_SECONDS)
    wrong = faults(found)
    assert not wrong, f"the layout of a step is invalid: {wrong[0]}"
    offset_bytes = np.full(len(recorded.size_bytes), OUTSIDE, np.int64)
    offset_bytes[recorded.is_planned] = found.offset_bytes
    return SolvedStep(
        size_bytes=recorded.size_bytes,
        offset_bytes=offset_bytes,
        mark_values=recorded.mark_values,
        mark_firsts=recorded.mark_firsts,
        places=recorded.places,
        lower_bound_bytes=found.lower_bound_bytes,
        seconds=found.seconds,
    )


class BackgroundSolve:
    """`solve_step` on a thread of its own, which the process waits for at its end."""

    def __init__(self, recorded: RecordedStep) -> None:
        self._solved: SolvedStep | None = None
        self._failed: MemoError | None = None
        self._thread = threading.Thread(target=self._run, args=(recorded,))
        self._thread.start()

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return not self._thread.is_alive()

    def result(self) -> SolvedStep:
        """The layout, waited for. Raises: MemoError, whatever `solve_step` raised."""
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        assert self._solved is not None, "the layout's thread ended without a layout"
        return self._solved

    def _run(self, recorded: RecordedStep) -> None:
        try:
            self._solved = solve_step(recorded)
        except MemoError as error:
            self._failed = error
