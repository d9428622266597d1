"""A recorded step's addresses: chosen, solved, checked, and in the form that a device serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from memo_planner.background import BackgroundCall
from memo_planner.layout import Placement, checked_step_layout
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


_MOST_SECONDS = 20.0
"""For a layout. Most take a tenth of one; behind computation they pass without any progress."""


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
    return _solved(recorded, checked_step_layout(**_problem(recorded, alignment_bytes)))


class BackgroundSolve:
    """`solve_step` in the background."""

    def __init__(self, recorded: RecordedStep, alignment_bytes: int) -> None:
        self._recorded = recorded
        problem = _problem(recorded, alignment_bytes)
        self._call = BackgroundCall(checked_step_layout, **problem)

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._call.done()

    def result(self) -> SolvedStep:
        """The layout, waited for. Raises: MemoError, whatever `solve_step` raised."""
        return _solved(self._recorded, self._call.result())


def _problem(recorded: RecordedStep, alignment_bytes: int) -> dict[str, Any]:
    return {
        "requests": recorded.requests,
        "alignment_bytes": alignment_bytes,
        "seconds": _MOST_SECONDS,
    }


def _solved(recorded: RecordedStep, found: Placement) -> SolvedStep:
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
