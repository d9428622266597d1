"""When a step was in which phase, block and tile, by the requests made there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memo_planner.trace.requests import BEFORE, NOWHERE, PHASES, Requests


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the step, [start, stop) in the time of `Requests`.

    level: 0 for a phase, 1 for a block in it, 2 for a part of the block or one of its tiles.
    number: of the block or tile; `NOWHERE` for a phase, and for a part that all tiles share.
    """

    level: int
    name: str
    number: int
    start: int
    stop: int


def stages_of(requests: Requests) -> list[Stage]:
    """The stages of a step, nested, in order of start, outer ones first.

    A stage begins with the first request made in it and ends where another's request is made. One
    that takes no time is left out.
    """
    found = [stage for level in range(3) for stage in _level(requests, level)]
    return sorted(found, key=lambda stage: (stage.start, stage.level))


def operation(requests: Requests, row: int) -> tuple[str, str]:
    """Stage and operation that asked for a request; "" for what is not known."""
    name = requests.op_names[int(requests.ops[row])]
    stage, colon, op = name.partition(":")
    return (stage, op) if colon else (stage, "")


def _level(requests: Requests, level: int) -> Iterator[Stage]:
    columns = (requests.phases, requests.blocks, requests.tiles, requests.ops)
    rows = zip(requests.malloc_times.tolist(), *(c.tolist() for c in columns), strict=True)
    stage_of = [name.partition(":")[0] for name in requests.op_names]
    before: tuple[object, ...] | None = None
    open_stage: tuple[str, int, int] | None = None
    for time, phase, block, tile, op in rows:
        if phase == BEFORE:
            continue
        key = (phase, block, tile, stage_of[op])[: (1, 2, 4)[level]]
        if key == before:
            continue
        yield from _closed(open_stage, level, time)
        before = key
        open_stage = _opened(level, (phase, block, tile), stage_of[op], time)
    yield from _closed(open_stage, level, requests.end_time)


def _opened(
    level: int, place: tuple[int, int, int], stage: str, time: int
) -> tuple[str, int, int] | None:
    phase, block, tile = place
    if level == 0:
        return PHASES[phase], NOWHERE, time
    if level == 1:
        return None if block == NOWHERE else (f"block {block}", block, time)
    if not stage and tile == NOWHERE:
        return None
    name = stage if tile == NOWHERE else f"{stage or 'tile'} {tile}"
    return name, tile, time


def _closed(open_stage: tuple[str, int, int] | None, level: int, time: int) -> Iterator[Stage]:
    if open_stage is not None and open_stage[2] < time:
        name, number, start = open_stage
        yield Stage(level=level, name=name, number=number, start=start, stop=time)
