"""Where in a step each event of device memory happened, by marks among the recorded events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from memo_planner.trace import PHASES, Column, EventLog, Requests, requests_of_events
from memo_train.device import Device, EventKind, Events
from memo_train.runtime import NOWHERE


class Place(NamedTuple):
    """A phase of `PHASES`, a stage of `runtime.observe`, a block, a tile, and an operation."""

    phase: str
    stage: str
    block: int
    tile: int
    op: str


class PlaceMarks:
    """An observer (see `runtime.observe`) that marks wherever a step comes to.

    A place is marked by its number, given out in the order of first visits; the device passes the
    marks on to whoever listens: a recording, or a step that is served by its layout.
    """

    def __init__(self, device: Device, places: Iterable[Place] = ()) -> None:
        """places: those that have their numbers already."""
        self._device = device
        self._place = Place("forward", "between", NOWHERE, NOWHERE, "")
        self._numbers = {place: number for number, place in enumerate(places)}

    @property
    def places(self) -> tuple[Place, ...]:
        """All places so far, by number."""
        return tuple(self._numbers)

    def start(self) -> None:
        """Mark the start of a step, in phase forward."""
        self.begin("forward")

    def begin(self, phase: str) -> None:
        """A phase of `PHASES` begins."""
        self._mark(Place(phase, "between", NOWHERE, NOWHERE, ""))

    def __call__(self, stage: str, block: int = NOWHERE, tile: int = NOWHERE) -> None:
        """`stage` begins; the loss is a phase as well."""
        phase = "loss" if stage == "loss" else self._place.phase
        self._mark(Place(phase, stage, block, tile, ""))

    def op(self, name: str) -> None:
        """An operation begins at the present place; "" is the end of one."""
        self._mark(self._place._replace(op=name))

    def _mark(self, place: Place) -> None:
        self._place = place
        self._device.mark(self._numbers.setdefault(place, len(self._numbers)))


class PlaceRecorder(PlaceMarks):
    """Records all of device memory's events between `start` and `stop`.

    An event belongs to the last mark before it.
    """

    def start(self) -> None:
        """Begin to record, in phase forward."""
        self._device.start_recording()
        super().start()

    def stop(self) -> Requests:
        """End the recording; the requests of it."""
        return requests_at(self._device.stop_recording(), self.places)


def requests_at(events: Events, places: Sequence[Place]) -> Requests:
    """The requests of recorded events, each at its place: the last mark before it.

    places: what the marks' values are numbers of. The first event must be a mark.
    """
    return requests_of_events(_log(events, places))


def _log(events: Events, places: Sequence[Place]) -> EventLog:
    is_mark = events["kind"] == EventKind.MARK
    marks = np.flatnonzero(is_mark)
    # For each event: the number of marks so far, less one, is the last one's.
    last_mark = marks[np.cumsum(is_mark) - 1]
    numbers = events["offset"][last_mark][~is_mark].astype(np.int64)
    happened = events[~is_mark]
    names = [_op_name(place) for place in places]
    op_names = ("", *dict.fromkeys(name for name in names if name))
    op_of = {name: index for index, name in enumerate(op_names)}

    def of_places(values: list[int]) -> Column:
        column: Column = np.take(np.array(values, dtype=np.int64), numbers)
        return column

    return EventLog(
        is_free=(happened["kind"] == EventKind.FREE).astype(np.int64),
        addresses=happened["offset"].astype(np.int64),
        size_bytes=happened["bytes"].astype(np.int64),
        phases=of_places([PHASES.index(place.phase) for place in places]),
        blocks=of_places([place.block for place in places]),
        tiles=of_places([place.tile for place in places]),
        ops=of_places([op_of[name] for name in names]),
        op_names=op_names,
    )


def _op_name(place: Place) -> str:
    """`stage` or `stage:operation`; nothing is known between stages but the operation."""
    stage = "" if place.stage == "between" else place.stage
    return ":".join(part for part in (stage, place.op) if part)
