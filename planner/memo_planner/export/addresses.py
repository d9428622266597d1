"""Addresses of a step's requests by several rules, for viewers that show addresses."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from heapq import heappop, heappush

import numpy as np

from memo_planner.allocators.best_fit import BestFitAllocator
from memo_planner.allocators.caching import CachingAllocator
from memo_planner.allocators.planned import planned
from memo_planner.allocators.replay import event_order, replay
from memo_planner.errors import InvalidInput
from memo_planner.trace.columns import Column
from memo_planner.trace.requests import Requests


class Addresses(str, Enum):
    """Who says where a request lies: our layout, or an allocator's simulator."""

    PLANNED = "planned"
    BEST_FIT = "best-fit"
    CACHING = "caching"


def addresses_by(
    rule: Addresses, requests: Requests, *, alignment_bytes: int = 512, seconds: float = 10.0
) -> Column:
    """int64 [n]: where every request begins, from 0 on.

    alignment_bytes: of the layout and of best fit; the caching allocator has its own.
    Raises: InvalidInput; SolverError.
    """
    finders: dict[Addresses, Callable[[], Column]] = {
        Addresses.PLANNED: lambda: (
            planned(
                requests, rule.value, alignment_bytes=alignment_bytes, seconds=seconds
            ).addresses
        ),
        Addresses.BEST_FIT: lambda: (
            replay(
                requests, BestFitAllocator(alignment_bytes=alignment_bytes), rule.value
            ).addresses
        ),
        Addresses.CACHING: lambda: replay(requests, CachingAllocator(), rule.value).addresses,
    }
    return finders[rule]()


def checked_addresses(requests: Requests, addresses: Column | None) -> Column:
    """`addresses`, one a request; best fit's if there are none.

    Raises: InvalidInput.
    """
    if addresses is None:
        return addresses_by(Addresses.BEST_FIT, requests)
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
        while live and live[0][1] <= now:
            heappop(live)
        changes.append((now, -live[0][0] if live else 0))
    for now, top in changes:
        tops[now] = top
    happens = np.zeros(requests.end_time + 1, np.int64)
    happens[times] = times
    return tops[np.maximum.accumulate(happens)][:-1]
