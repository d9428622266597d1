"""An order in which the operations of a schedule can start."""

from __future__ import annotations

from collections.abc import Sequence

from memo_planner.errors import MemoError
from memo_planner.schedule.operation import Operation, Stream


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
