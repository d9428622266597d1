"""Runs a schedule on a clock.

Every stream runs its operations one after another in list order, and each starts once its stream
is free and all it waits for is over. So start and end of every operation follow from those before
it, and one pass over the list in start order gives the exact clock.
"""

from __future__ import annotations

import math

import numpy as np

from memo_planner.schedule.memory import Changes, Floats, Ints, MemoryCurve
from memo_planner.schedule.operation import Operation, Stream
from memo_planner.schedule.order import start_order
from memo_planner.schedule.schedule import Schedule
from memo_planner.schedule.simulation import CAUSES, Simulation, Stall
from memo_planner.schedule.speeds import Speeds

_CAUSE_OF = {Stream.D2H: CAUSES[0], Stream.H2D: CAUSES[1], Stream.COLLECTIVE: CAUSES[2]}


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
