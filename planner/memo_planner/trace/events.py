"""From a log of allocations and frees to requests with lifetimes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memo_planner.checks import LARGEST
from memo_planner.errors import InvalidInput
from memo_planner.trace.columns import Column, int_column
from memo_planner.trace.requests import BEFORE, NOWHERE, Requests


@dataclass(frozen=True, kw_only=True, eq=False)
class EventLog:
    """Allocations and frees in the order in which they happened; columns of one length [events].

    is_free: 0 for an allocation, 1 for a free. addresses: where it starts. size_bytes: its size.
    phases, blocks, tiles, ops: where it happened, as in `Requests`.
    """

    is_free: Column
    addresses: Column
    size_bytes: Column
    phases: Column
    blocks: Column
    tiles: Column
    ops: Column
    op_names: tuple[str, ...]


def requests_of_events(log: EventLog) -> Requests:
    """One request for every allocation, and for every free of something that lived before.

    Raises: InvalidInput on a double free, an allocation where one lives, or a wrong figure.
    """
    is_free = int_column("is_free", log.is_free, 0, 1).astype(bool)
    addresses = int_column("addresses", log.addresses, 0, LARGEST)
    sizes = int_column("size_bytes", log.size_bytes, 1, LARGEST)
    if not len(is_free) == len(addresses) == len(sizes):
        raise InvalidInput("the columns of a log of events differ in length")
    # Sorted by address, then time: allocations and frees must take turns at every address.
    order = np.lexsort((np.arange(len(addresses)), addresses))
    frees, at = is_free[order], addresses[order]
    follows = np.concatenate([[False], at[1:] == at[:-1]])
    _check_turns(frees, follows, order, addresses)
    freed_by = _next_free(frees, follows, order)
    end_time = len(is_free) + 1
    olds = order[frees & ~follows]
    olds = olds[np.argsort(olds)]
    news = np.flatnonzero(~is_free)
    rows = np.concatenate([olds, news])
    num_old = len(olds)
    return Requests(
        ids=np.arange(len(rows)),
        malloc_times=np.concatenate([np.zeros(num_old, np.int64), news + 1]),
        free_times=np.concatenate([olds + 1, np.where(freed_by < 0, end_time, freed_by + 1)[news]]),
        size_bytes=sizes[rows],
        phases=_of_new(log.phases, olds, news, BEFORE),
        blocks=_of_new(log.blocks, olds, news, NOWHERE),
        tiles=_of_new(log.tiles, olds, news, NOWHERE),
        ops=_of_new(log.ops, olds, news, 0),
        op_names=log.op_names,
        end_time=end_time,
    )


def _check_turns(
    frees: npt.NDArray[np.bool_], follows: npt.NDArray[np.bool_], order: Column, addresses: Column
) -> None:
    same_again = follows & (frees == np.concatenate([[False], frees[:-1]]))
    if same_again.any():
        at = int(same_again.argmax())
        what = "freed twice" if frees[at] else "allocated where an allocation lives"
        event = int(order[at])
        raise InvalidInput(f"event {event} is wrong: address {int(addresses[event])} is {what}")


def _next_free(
    frees: npt.NDArray[np.bool_], follows: npt.NDArray[np.bool_], order: Column
) -> Column:
    """For each event, if it is an allocation: the event that frees it, or -1."""
    freed_by = np.full(len(order), -1, dtype=np.int64)
    ends = np.flatnonzero(frees & follows)
    freed_by[order[ends - 1]] = order[ends]
    return freed_by


def _of_new(column: Column, olds: Column, news: Column, old_value: int) -> Column:
    return np.concatenate([np.full(len(olds), old_value, np.int64), np.asarray(column)[news]])
