"""The requests of one step, as columns: what was asked, when, how long it lived, and by whom.

They come from a log of allocations and frees. Numbers are checked value by value at numpy's speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from memo_planner.checks import LARGEST, check_int
from memo_planner.errors import InvalidInput

Column = npt.NDArray[np.int64]

PHASES = ("before", "forward", "loss", "backward", "optimizer")
"""Parts of a step; `before` is the phase of what lived when the recording began."""

BEFORE = PHASES.index("before")
NOWHERE = -1
"""The block of a request made outside blocks, the tile of one that all tiles share."""

_MOST_REQUESTS = 2**31
# Traces made by hand may leave times out, so far as that costs no memory to speak of.
_SPARE_TIMES = 2**20


def int_column(
    name: str, values: Sequence[Any] | npt.NDArray[Any], least: int, most: int
) -> Column:
    """`values` as int64 [n], each from `least` to `most`; an array of its own, not to be written.

    Raises: InvalidInput naming the first value that is no whole number or out of range.
    """
    column = _whole_numbers(name, values)
    wrong = (column < least) | (column > most)
    if wrong.any():
        at = int(wrong.argmax())
        raise InvalidInput(
            f"{name}[{at}] is {int(column[at]):,}; it must be from {least:,} to {most:,}"
        )
    column.setflags(write=False)
    return column


def _whole_numbers(name: str, values: Sequence[Any] | npt.NDArray[Any]) -> Column:
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise InvalidInput(f"{name} has {values.ndim} dimensions; it must have one")
        if values.dtype.kind in "iu" and not (values.dtype == np.uint64 and _is_over(values)):
            return values.astype(np.int64)
        values = values.tolist()
    elif not isinstance(values, list | tuple):
        raise InvalidInput(f"{name} is a {type(values).__name__}; it must be a list")
    if set(map(type, values)) - {int}:
        at, value = next((i, v) for i, v in enumerate(values) if type(v) is not int)
        raise InvalidInput(f"{name}[{at}] is {_shown(value)}; it must be a whole number")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        at, value = next((i, v) for i, v in enumerate(values) if not -(2**63) <= v < 2**63)
        raise InvalidInput(f"{name}[{at}] is {_shown(value)}; it is far too large") from None


def _is_over(values: npt.NDArray[np.uint64]) -> bool:
    return bool(values.size) and int(values.max()) >= 2**63


def _shown(value: object) -> str:
    # An int of thousands of digits has no short repr, and Python refuses to make a long one.
    text = "a number of over 60 digits" if _is_huge(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and abs(value) >= 10**60


@dataclass(frozen=True, kw_only=True, eq=False)
class Requests:
    """Requests to device memory in the order in which they were made; columns of one length [n].

    Time counts events (allocations and frees) from 1; 0 is before the step. A request lives in
    [malloc_times, free_times), half-open; one that outlives the step is freed at `end_time`.

    Attributes:
        ids: unique. size_bytes: 1 or more.
        malloc_times: never falling; 0 exactly for phase `before`. free_times: at most `end_time`.
        phases: index into `PHASES`. blocks, tiles: index, or `NOWHERE`.
        ops: index into `op_names` of the operation that asked; `op_names[0]` is "", not known.
        end_time: the time after the last event.

    Raises: InvalidInput naming the first request that is wrong.
    """

    ids: Column
    malloc_times: Column
    free_times: Column
    size_bytes: Column
    phases: Column
    blocks: Column
    tiles: Column
    ops: Column
    op_names: tuple[str, ...]
    end_time: int

    def __post_init__(self) -> None:
        _check_names(self.op_names)
        check_int("Requests.end_time", self.end_time, 1)
        ranges = {
            "ids": (0, LARGEST),
            "malloc_times": (0, LARGEST),
            "free_times": (0, LARGEST),
            "size_bytes": (1, LARGEST),
            "phases": (0, len(PHASES) - 1),
            "blocks": (NOWHERE, _MOST_REQUESTS),
            "tiles": (NOWHERE, _MOST_REQUESTS),
            "ops": (0, len(self.op_names) - 1),
        }
        for name, (least, most) in ranges.items():
            column = int_column(name, getattr(self, name), least, most)
            object.__setattr__(self, name, column)
        self._check_lengths(tuple(ranges))
        self._check_ids()
        self._check_lifetimes()
        if float(self.size_bytes.sum(dtype=np.float64)) > LARGEST:
            raise InvalidInput(f"all requests together ask for more than {LARGEST:,} bytes")

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Requests):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(np.array_equal(a, b) for a, b in pairs)

    # Equal by its columns, and arrays have no hash.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Requests({len(self):,} requests, end_time={self.end_time:,})"

    @property
    def outlive(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whether each request lives on after the step: bool [n]."""
        return np.asarray(self.free_times == self.end_time)

    def live_bytes(self) -> Column:
        """Bytes in live requests at each time from 0 to `end_time` - 1: int64 [end_time]."""
        times = np.concatenate([self.malloc_times, self.free_times])
        steps = np.concatenate([self.size_bytes, -self.size_bytes])
        changes = np.zeros(self.end_time + 1, dtype=np.int64)
        # Not `+=`, which counts a time once however often it occurs.
        np.add.at(changes, times, steps)
        return np.cumsum(changes)[:-1]

    def peak_bytes(self) -> int:
        """Most bytes that live at once: no layout can do with less."""
        return int(self.live_bytes().max(initial=0))

    def _check_lengths(self, names: tuple[str, ...]) -> None:
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            raise InvalidInput(f"the columns of requests differ in length: {lengths}")
        # `live_bytes` has an entry a time; a time that no event takes would only make it larger.
        if self.end_time > 2 * len(self) + 2 + _SPARE_TIMES:
            raise InvalidInput(
                f"end_time is {self.end_time:,} for {len(self):,} requests; time counts events"
            )

    def _check_ids(self) -> None:
        order = np.argsort(self.ids, kind="stable")
        same = self.ids[order][1:] == self.ids[order][:-1]
        if same.any():
            at = int(order[1:][same][0])
            raise InvalidInput(f"the id {int(self.ids[at])} occurs twice; ids must be unique")

    def _check_lifetimes(self) -> None:
        made, freed = self.malloc_times, self.free_times
        self._refuse(freed <= made, "is freed at {freed}, but made at {made}")
        self._refuse(freed > self.end_time, "is freed at {freed}, after the step's end")
        self._refuse(np.diff(made, prepend=0) < 0, "is made at {made}, before the one above it")
        is_before = self.phases == BEFORE
        self._refuse(is_before != (made == 0), "is made at {made}; 0 belongs to phase before")

    def _refuse(self, wrong: np.ndarray[tuple[int], np.dtype[np.bool_]], why: str) -> None:
        if not wrong.any():
            return
        at = int(wrong.argmax())
        times = {"made": int(self.malloc_times[at]), "freed": int(self.free_times[at])}
        raise InvalidInput(f"request {int(self.ids[at])} {why.format(**times)}")


def _check_names(names: object) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidInput("op_names must be a tuple of strings")
    if not names or names[0] != "" or len(set(names)) < len(names):
        raise InvalidInput('op_names must begin with "" (not known) and hold each name once')


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
