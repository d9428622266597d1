"""What viewers show of a step: addresses of its requests by several rules, and its places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush

import numpy as np

from memo_planner.allocators import BestFitAllocator, CachingAllocator, event_order, planned, replay
from memo_planner.errors import InvalidInput
from memo_planner.trace import BEFORE, NOWHERE, PHASES, Column, Requests


class Addresses(str, Enum):
    """Who says where a request lies: our layout, or an allocator's simulator."""

    PLANNED = "planned"
    BEST_FIT = "best-fit"
    CACHING = "caching"

    def of(
        self, requests: Requests, *, alignment_bytes: int = 512, seconds: float = 10.0
    ) -> Column:
        """int64 [n]: where every request begins, from 0 on.

        alignment_bytes: of the layout and of best fit; the caching allocator has its own.
        Raises: InvalidInput; SolverError.
        """
        finders: dict[Addresses, Callable[[], Column]] = {
            Addresses.PLANNED: lambda: (
                planned(
                    requests, self.value, alignment_bytes=alignment_bytes, seconds=seconds
                ).addresses
            ),
            Addresses.BEST_FIT: lambda: (
                replay(
                    requests, BestFitAllocator(alignment_bytes=alignment_bytes), self.value
                ).addresses
            ),
            Addresses.CACHING: lambda: replay(requests, CachingAllocator(), self.value).addresses,
        }
        return finders[self]()


def checked_addresses(requests: Requests, addresses: Column | None) -> Column:
    """`addresses`, one a request; best fit's if there are none.

    Raises: InvalidInput.
    """
    if addresses is None:
        return Addresses.BEST_FIT.of(requests)
    if addresses.shape != (len(requests),):
        raise InvalidInput(f"{addresses.shape} addresses for {len(requests):,} requests")
    if (addresses < 0).any():
        at = int((addresses < 0).argmax())
        raise InvalidInput(f"request {int(requests.ids[at])} has the address {addresses[at]:,}")
    return addresses


def end_bytes(requests: Requests, addresses: Column) -> int:
    """The highest end of a request."""
    return int((addresses + requests.size_bytes).max(initial=0))


def top_addresses(requests: Requests, addresses: Column) -> Column:
    """Highest end of a live request at each time from 0 to `end_time` - 1: int64 [end_time]."""
    num = len(requests)
    ends = (addresses + requests.size_bytes).tolist()
    freed = requests.free_times.tolist()
    times = np.concatenate([requests.free_times, requests.malloc_times])
    tops = np.zeros(requests.end_time + 1, np.int64)
    changes: list[tuple[int, int]] = []
    live: list[tuple[int, int]] = []
    for event in event_order(requests).tolist():
        now = int(times[event])
        if event >= num:
            heappush(live, (-ends[event - num], freed[event - num]))
        # A freed request leaves the heap when it comes to its top.
        while live and live[0][1] <= now:
            heappop(live)
        changes.append((now, -live[0][0] if live else 0))
    for now, top in changes:
        tops[now] = top
    happens = np.zeros(requests.end_time + 1, np.int64)
    happens[times] = times
    # Between events the last one's level holds.
    return tops[np.maximum.accumulate(happens)][:-1]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A stretch of the step, [start, stop) in the time of `Requests`.

    level: 0 for a phase, 1 for a block in it, 2 for a part of the block or one of its tiles.
    number: of the block or tile; `NOWHERE` for a phase, and for a part that all tiles share.
    """

    level: int
    name: str
    number: int
    start: int
    stop: int


def stretches_of(requests: Requests) -> list[Stretch]:
    """The stretches of a step, nested, in order of start, outer ones first.

    A stretch begins with the first request made in it and ends where another's request is made. One
    that takes no time is left out.
    """
    found = [each for level in range(3) for each in _level(requests, level)]
    return sorted(found, key=lambda each: (each.start, each.level))


def operation(requests: Requests, row: int) -> tuple[str, str]:
    """Stage and operation that asked for a request; "" for what is not known."""
    name = requests.op_names[int(requests.ops[row])]
    stage, colon, op = name.partition(":")
    return (stage, op) if colon else (stage, "")


def _level(requests: Requests, level: int) -> Iterator[Stretch]:
    columns = (requests.phases, requests.blocks, requests.tiles, requests.ops)
    rows = zip(requests.malloc_times.tolist(), *(c.tolist() for c in columns), strict=True)
    stage_of = [name.partition(":")[0] for name in requests.op_names]
    before: tuple[object, ...] | None = None
    opened: tuple[str, int, int] | None = None
    for time, phase, block, tile, op in rows:
        if phase == BEFORE:
            continue
        key = (phase, block, tile, stage_of[op])[: (1, 2, 4)[level]]
        if key == before:
            continue
        yield from _closed(opened, level, time)
        before = key
        opened = _opened(level, (phase, block, tile), stage_of[op], time)
    yield from _closed(opened, level, requests.end_time)


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


def _closed(opened: tuple[str, int, int] | None, level: int, time: int) -> Iterator[Stretch]:
    if opened is not None and opened[2] < time:
        name, number, start = opened
        yield Stretch(level=level, name=name, number=number, start=start, stop=time)
