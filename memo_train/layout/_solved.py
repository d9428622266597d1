"""A recorded step's addresses: chosen, solved, checked, and in the form that a device serves."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass

import numpy as np

from memo_planner.errors import MemoError
from memo_planner.layout import faults, lay_out_step
from memo_planner.trace import Column, Requests
from memo_train.device import OUTSIDE, EventKind, Events, StepAddresses
from memo_train.trace import Place, requests_at


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedStep:
    """One step's requests from compute's thread or stream, but for those too small to be planned.

    Attributes:
        requests: those that begin and end within the step.
        size_bytes: of all of them, in order: int64 [n].
        is_planned: whether each one is in `requests`; the others live on after the step: bool [n].
        mark_values: numbers of the places the step came to, in order: int64 [m].
        mark_firsts: how many requests were before each mark: int64 [m].
        places: what the numbers mean.
    """

    requests: Requests
    size_bytes: Column
    is_planned: np.ndarray[tuple[int], np.dtype[np.bool_]]
    mark_values: Column
    mark_firsts: Column
    places: tuple[Place, ...]


def recorded_step(events: Events, places: tuple[Place, ...], smallest_bytes: int) -> RecordedStep:
    """The part of a recording that a layout can plan. The first event is compute's first mark.

    smallest_bytes: as `Device.smallest_planned_bytes`.
    """
    kinds = events["kind"]
    made = events[kinds == EventKind.ALLOC]
    # The first event is compute's mark, so its source is compute.
    is_ours = (made["source"] == events["source"][0]) & (made["bytes"] >= smallest_bytes)
    everything = requests_at(events, places)
    num_old = len(everything) - len(made)
    is_planned = is_ours & ~everything.outlive[num_old:]
    is_mark = kinds == EventKind.MARK
    counted = np.zeros(len(events), np.int64)
    counted[kinds == EventKind.ALLOC] = is_ours
    return RecordedStep(
        requests=_select(everything, np.concatenate([np.zeros(num_old, bool), is_planned])),
        size_bytes=made["bytes"][is_ours].astype(np.int64),
        is_planned=is_planned[is_ours],
        mark_values=events["offset"][is_mark].astype(np.int64),
        mark_firsts=np.cumsum(counted)[is_mark],
        places=places,
    )


def _select(requests: Requests, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Requests:
    """Some of the requests, on a clock that counts their own events only."""
    times = np.concatenate([requests.malloc_times[mask], requests.free_times[mask]])
    # Ranks of the times: `Requests` counts its own events from 1, without gaps.
    clock = np.argsort(np.argsort(times, kind="stable"), kind="stable") + 1
    num_selected = len(times) // 2
    return Requests(
        ids=np.arange(num_selected),
        malloc_times=clock[:num_selected],
        free_times=clock[num_selected:],
        size_bytes=requests.size_bytes[mask],
        phases=requests.phases[mask],
        blocks=requests.blocks[mask],
        tiles=requests.tiles[mask],
        ops=requests.ops[mask],
        op_names=requests.op_names,
        end_time=len(times) + 1,
    )


# Steps of up to half a million requests take 0.02 to 1.7 s (benchmarks/layout_step.py).
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


# Two solves at once would take two cores from training.
_one_at_a_time = threading.Lock()
_NICENESS = 10
"""Of 19. At the very last the thread might hold Python's lock and never get to let it go."""


class BackgroundSolve:
    """`solve_step` on a thread of its own, which the process waits for at its end.

    Threads solve one after another, and where the system has priorities (Linux) behind compute.
    """

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
        if sys.platform == "linux":  # elsewhere a priority is a whole process's
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            with _one_at_a_time:
                self._solved = solve_step(recorded, alignment_bytes)
        except MemoError as error:
            self._failed = error
