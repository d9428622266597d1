"""Runs a schedule on a clock.

Operations are first put in an order in which they can start. Every stream runs its operations one
after another in list order, and each starts once its stream is free and all it waits for is over.
So start and end of every operation follow from those before it, and one pass over the list in start
order gives the exact clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from memo_planner.errors import MemoError
from memo_planner.schedule._schedule import Operation, Schedule, Stream
from memo_planner.schedule._simulation import (
    CAUSES,
    Changes,
    Floats,
    Ints,
    MemoryCurve,
    Simulation,
    Speeds,
    Stall,
)

_CAUSE_OF = {Stream.D2H: CAUSES[0], Stream.H2D: CAUSES[1], Stream.COLLECTIVE: CAUSES[2]}


class ScheduleDeadlock(MemoError):
    """Operations of a schedule wait for one another in a circle, so the step would never end."""


def start_order(operations: Sequence[Operation]) -> list[int]:
    """Ids with everything that an operation waits for before it, streams in list order.

    That is the list's own order where nothing waits for a later operation.
    Raises: ScheduleDeadlock, naming a circle of waits.
    """
    if all(waited < i for i, one in enumerate(operations) for waited in one.waits_for):
        return list(range(len(operations)))
    before = _before(operations)
    order: list[int] = []
    is_placed = [False] * len(operations)
    for index in range(len(operations)):
        _place(index, before, is_placed, order, operations)
    return order


def _before(operations: Sequence[Operation]) -> list[tuple[int, ...]]:
    """For each operation what must be over first: its waits and its stream's last operation."""
    last: dict[Stream, int] = {}
    before = []
    for index, one in enumerate(operations):
        stream, first = one.stream, one.waits_for
        if stream is not None:
            first = (*first, last[stream]) if stream in last else first
            last[stream] = index
        before.append(first)
    return before


def _place(
    index: int,
    before: list[tuple[int, ...]],
    is_placed: list[bool],
    order: list[int],
    operations: Sequence[Operation],
) -> None:
    """Put `index` into `order` after all that comes before it."""
    # A path of its own: recursion would go as deep as the step is long.
    path = [] if is_placed[index] else [index]
    on_path = set(path)
    while path:
        first = next((one for one in before[path[-1]] if not is_placed[one]), None)
        if first is None:
            done = path.pop()
            on_path.discard(done)
            is_placed[done] = True
            order.append(done)
        elif first in on_path:
            raise ScheduleDeadlock(_describe(path[path.index(first) :], operations))
        else:
            path.append(first)
            on_path.add(first)


def _describe(circle: list[int], operations: Sequence[Operation]) -> str:
    shown = circle if len(circle) <= 4 else [*circle[:3], circle[-1]]
    named = " -> ".join(f"operation {i} ({operations[i]})" for i in shown)
    return (
        f"{len(circle)} operations wait for one another, so the step would never end: {named} -> "
        f"operation {circle[0]}; let each wait only for operations that are issued before it"
    )


def simulate(schedule: Schedule, speeds: Speeds) -> Simulation:
    """The step of `schedule`; the same input gives the same result, bit for bit.

    Raises: ScheduleDeadlock if operations wait for one another; InvalidInput if bytes are freed
        before they are allocated, or the speed of a collective is missing.
    """
    operations = schedule.operations
    order = start_order(operations)
    clock = _Clock(operations, speeds)
    for index in order:
        clock.run(index)
    step_s = max(clock.ends)
    clock.add_tail(step_s)
    return Simulation(
        schedule=schedule,
        speeds=speeds,
        step_s=step_s,
        starts_s=np.array(clock.starts),
        ends_s=np.array(clock.ends),
        busy_s={stream: math.fsum(seconds) for stream, seconds in clock.busy_s.items()},
        stalls=tuple(clock.stalls),
        device=_curve("device", schedule, order, clock),
        host=_curve("host", schedule, order, clock),
    )


class _Clock:
    """When operations are issued, start and end, and where compute stands still."""

    def __init__(self, operations: tuple[Operation, ...], speeds: Speeds) -> None:
        self.issues = [0.0] * len(operations)
        self.starts = [0.0] * len(operations)
        self.ends = [0.0] * len(operations)
        self.stalls: list[Stall] = []
        self._operations = operations
        self._speeds = speeds
        self.busy_s: dict[Stream, list[float]] = {stream: [] for stream in Stream}
        self._free_s: dict[Stream | None, float] = dict.fromkeys(Stream, 0.0)
        self._last_compute = 0

    def run(self, index: int) -> None:
        """Give the operation its times; all it waits for has them."""
        one = self._operations[index]
        stream, ends = one.stream, self.ends
        ready_s = 0.0
        for waited in one.waits_for:
            if ends[waited] > ready_s:
                ready_s = ends[waited]
        free_s = 0.0 if stream is None else self._free_s[stream]
        start_s = max(ready_s, free_s)
        self.starts[index] = start_s
        seconds = self._speeds.seconds(one)
        ends[index] = start_s + seconds
        # A copy takes its memory when it is asked for; a computation when its turn comes.
        self.issues[index] = ready_s
        if stream is Stream.COMPUTE:
            self.issues[index], self._last_compute = start_s, index
            if start_s > free_s:
                self._stall(index, start_s - free_s)
        if stream is not None:
            self._free_s[stream] = ends[index]
            self.busy_s[stream].append(seconds)

    def add_tail(self, step_s: float) -> None:
        """Note what outlasts the last computation."""
        left_s = step_s - self._free_s[Stream.COMPUTE]
        if left_s > 0:
            self.stalls.append(Stall(operation=self._last_compute, cause=CAUSES[3], seconds=left_s))

    def _stall(self, index: int, seconds: float) -> None:
        latest = max(self._operations[index].waits_for, key=lambda waited: self.ends[waited])
        cause = self._cause(latest)
        self.stalls.append(Stall(operation=index, cause=cause, seconds=seconds))

    def _cause(self, index: int) -> str:
        """What held a stall's last awaited operation: of a release, what that waited for."""
        one = self._operations[index]
        while one.stream is None and one.waits_for:
            one = self._operations[max(one.waits_for, key=lambda waited: self.ends[waited])]
        return CAUSES[3] if one.stream is None else _CAUSE_OF[one.stream]


def _curve(where: str, schedule: Schedule, order: list[int], clock: _Clock) -> MemoryCurve:
    operations = schedule.operations
    ids = np.array(order, np.int64)
    issues: Floats = np.array(clock.issues)
    ends: Floats = np.array(clock.ends)
    changes = Changes(
        ids=ids,
        alloc_s=issues[ids],
        alloc_bytes=_column(operations, f"{where}_alloc_bytes")[ids],
        free_s=ends[ids],
        free_bytes=_column(operations, f"{where}_free_bytes")[ids],
    )
    return changes.curve(where, schedule.state_bytes if where == "device" else 0)


def _column(operations: tuple[Operation, ...], name: str) -> Ints:
    return np.array([getattr(one, name) for one in operations], np.int64)
