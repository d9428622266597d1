"""A recorded step's addresses: solved, checked, and in the form that a device serves."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from memo_planner.errors import MemoError
from memo_planner.layout.step import lay_out_step
from memo_planner.layout.validate import faults
from memo_train.device.steps import OUTSIDE, StepAddresses
from memo_train.layout.recorded import RecordedStep
from memo_train.trace.places import Place

SOLVE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class SolvedStep(StepAddresses):
    """The addresses of a step, and how good they are.

    Attributes:
        places: what the marks' values mean.
        lower_bound_bytes: most planned bytes that live at once, aligned.
        seconds: that solving took.
    """

    places: tuple[Place, ...]
    lower_bound_bytes: int
    seconds: float


def solve_step(recorded: RecordedStep, alignment_bytes: int) -> SolvedStep:
    """The layout with the lowest peak that is found in time. Raises: MemoError.

    alignment_bytes: as `Device.alignment_bytes`.
    """
    found = lay_out_step(recorded.requests, alignment_bytes=alignment_bytes, seconds=SOLVE_SECONDS)
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

    def __init__(self, recorded: RecordedStep, alignment_bytes: int) -> None:
        self._solved: SolvedStep | None = None
        self._failed: MemoError | None = None
        self._thread = threading.Thread(target=self._run, args=(recorded, alignment_bytes))
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

    def _run(self, recorded: RecordedStep, alignment_bytes: int) -> None:
        try:
            self._solved = solve_step(recorded, alignment_bytes)
        except MemoError as error:
            self._failed = error
