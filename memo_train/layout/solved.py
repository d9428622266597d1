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

ALIGNMENT_BYTES = 64
SOLVE_SECONDS = 20.0
_REQUEST = np.dtype([("bytes", "<u8"), ("offset", "<u8")])
_MARK = np.dtype([("value", "<u8"), ("first", "<u8")])


@dataclass(frozen=True, kw_only=True, eq=False)
class SolvedStep:
    """Addresses for a recorded step.

    offset_bytes: of each planned request, from the start of the planned range: int64.
    peak_bytes: end of the highest. lower_bound_bytes: most bytes that live at once, aligned.
    seconds: that solving took.
    """

    recorded: RecordedStep
    offset_bytes: Column
    peak_bytes: int
    lower_bound_bytes: int
    seconds: float

    @cached_property
    def native(self) -> _core.StepLayout:
        """The layout as the device takes it."""
        recorded = self.recorded
        requests = np.empty(len(recorded.size_bytes), _REQUEST)
        requests["bytes"] = recorded.size_bytes
        requests["offset"] = _core.StepLayout.OUTSIDE
        requests["offset"][recorded.is_planned] = self.offset_bytes
        marks = np.empty(len(recorded.mark_values), _MARK)
        marks["value"], marks["first"] = recorded.mark_values, recorded.mark_firsts
        return _core.StepLayout(requests, marks, SMALLEST_BYTES)


def solve_step(recorded: RecordedStep) -> SolvedStep:
    """The layout with the lowest peak that is found in time. Raises: MemoError."""
    found = lay_out_step(
        recorded.requests, alignment_bytes=ALIGNMENT_BYTES, seconds=SOLVE_SECONDS
    ).placement
    wrong = faults(found)
    assert not wrong, f"the layout of a step is invalid: {wrong[0]}"
    return SolvedStep(
        recorded=recorded,
        offset_bytes=found.offset_bytes,
        peak_bytes=found.peak_bytes,
        lower_bound_bytes=found.lower_bound_bytes,
        seconds=found.seconds,
    )


class BackgroundSolve:
    """`solve_step` on a thread of its own."""

    def __init__(self, recorded: RecordedStep) -> None:
        self._solved: SolvedStep | None = None
        self._failed: MemoError | None = None
        self._thread = threading.Thread(target=self._run, args=(recorded,), daemon=True)
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
