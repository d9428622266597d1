"""Steps of one shape: which is recorded, which go by the layout, and what that was worth."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from memo_planner.errors import MemoError, format_bytes
from memo_train.device import Departure, Device, ReplayCounts, StepLayout
from memo_train.layout._solved import BackgroundSolve, RecordedStep, SolvedStep
from memo_train.runtime import NOWHERE
from memo_train.trace import Place


@dataclass(frozen=True, kw_only=True)
class ShapeReport:
    """The layout of steps of one shape, and what became of those steps.

    Attributes:
        batch, tokens: of the step. precision: what it computes in.
        state: `recording`, `solving`, `planned`, or `by size` where it has no layout.
        num_requests: planned in a step. peak_bytes: of the planned range. lower_bound_bytes: most
            planned bytes that live at once.
        solve_s: seconds in which the layout was found.
        num_steps: by the layout, to their end. num_steps_by_size: without it.
        planned, outside, small: requests of all steps by the layout: at their address; of tensors
            that live on after the step; below the smallest size that is planned.
        unplanned: requests that were not as planned. missing: planned ones that did not come.
        first_departure: what the first of them asked and where; empty if there was none.
    """

    batch: int
    tokens: int
    precision: str
    state: str
    num_requests: int
    peak_bytes: int
    lower_bound_bytes: int
    solve_s: float
    num_steps: int
    num_steps_by_size: int
    planned: int
    outside: int
    small: int
    unplanned: int
    missing: int
    first_departure: str

    def __str__(self) -> str:
        name = f"{self.batch} x {self.tokens:,} tokens in {self.precision}: {self.state}"
        if not self.num_requests:
            return f"{name}; {self.num_steps_by_size:,} steps by size"
        above = self.peak_bytes - self.lower_bound_bytes
        lines = [
            name,
            f"  layout     {self.num_requests:,} requests a step in "
            f"{format_bytes(self.peak_bytes)}, {format_bytes(above)} above the lower bound, "
            f"solved in {self.solve_s:.2f} s",
            f"  steps      {self.num_steps:,} by the layout, {self.num_steps_by_size:,} by size",
            f"  requests   {self.planned:,} planned, {self.unplanned:,} unplanned, "
            f"{self.missing:,} missing; besides {self.outside:,} that outlive their step and "
            f"{self.small:,} too small to plan",
        ]
        if self.first_departure:
            lines.append(f"  departure  {self.first_departure}")
        return "\n".join(lines)


MOST_RECORDINGS = 4
"""Of one shape; a model whose steps never repeat is not recorded for ever."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What makes two steps ask for the same memory. precision: what they compute in."""

    batch: int
    tokens: int
    precision: str


@dataclass(kw_only=True)
class _Totals:
    num_steps: int = 0
    num_steps_by_size: int = 0
    planned: int = 0
    outside: int = 0
    small: int = 0
    departed: int = 0
    missing: int = 0


@dataclass(kw_only=True)
class ShapeSteps:
    """The state of one shape of steps on `device`.

    solved, layout: the addresses, and as the device takes them; None if there are none yet.
    wants_recording: whether its next step is to be recorded.
    """

    shape: Shape
    device: Device
    solved: SolvedStep | None = None
    layout: StepLayout | None = None
    num_recordings: int = 0
    wants_recording: bool = True
    first_departure: str = ""
    _solving: BackgroundSolve | None = None
    _totals: _Totals = field(default_factory=_Totals)

    @property
    def is_new(self) -> bool:
        """Whether none of its steps was recorded, and no layout was found before."""
        return not self.num_recordings and self.solved is None

    def solve(self, recorded: RecordedStep) -> None:
        """Start to look for the layout of a step that was recorded."""
        self.wants_recording = False
        self._solving = BackgroundSolve(recorded, self.device.alignment_bytes)

    def serve(self, solved: SolvedStep) -> None:
        """Let later steps go by `solved`. Raises: InvalidDeviceArgument."""
        self.layout = self.device.make_layout(solved)
        self.solved = solved

    def take_solved(self, *, wait: bool = False) -> None:
        """Put a layout in force that has been found since; `wait` for one that is under way."""
        if self._solving is None or not (wait or self._solving.done()):
            return
        # Taken off first: a solve that fails is not asked again at every step.
        solving, self._solving = self._solving, None
        try:
            self.serve(solving.result())
        except MemoError as error:
            warnings.warn(f"{self._name()} has no layout: {error}", stacklevel=2)

    def went_by_size(self) -> None:
        """A step went without a layout."""
        self._totals.num_steps_by_size += 1

    def went(self, counts: ReplayCounts) -> None:
        """A step went by the layout; one that departed is recorded again, and told once."""
        totals = self._totals
        totals.num_steps += 1
        for name in ("planned", "outside", "small", "departed", "missing"):
            setattr(totals, name, getattr(totals, name) + getattr(counts, name))
        if counts.departed or counts.missing:
            self.wants_recording = self.num_recordings < MOST_RECORDINGS
            self._tell(counts)

    def report(self) -> ShapeReport:
        """The shape's layout and steps so far."""
        solved, totals = self.solved, self._totals
        return ShapeReport(
            batch=self.shape.batch,
            tokens=self.shape.tokens,
            precision=self.shape.precision,
            state=self._state(),
            num_requests=0 if solved is None else solved.num_planned,
            peak_bytes=0 if solved is None else solved.peak_bytes,
            lower_bound_bytes=0 if solved is None else solved.lower_bound_bytes,
            solve_s=0.0 if solved is None else solved.seconds,
            num_steps=totals.num_steps,
            num_steps_by_size=totals.num_steps_by_size,
            planned=totals.planned,
            outside=totals.outside,
            small=totals.small,
            unplanned=totals.departed,
            missing=totals.missing,
            first_departure=self.first_departure,
        )

    def _state(self) -> str:
        if self._solving is not None:
            return "solving"
        if self.wants_recording:
            return "recording"
        return "by size" if self.solved is None else "planned"

    def _tell(self, counts: ReplayCounts) -> None:
        if self.first_departure:
            return
        assert self.solved is not None
        missing = f"{counts.missing:,} planned requests did not come"
        found = counts.first
        self.first_departure = missing if found is None else _departure(found, self.solved.places)
        warnings.warn(
            f"{self._name()} did not go as its layout planned: {counts.departed:,} requests of "
            f"{counts.departed + counts.planned:,} went elsewhere ({self.first_departure}); the "
            "results are right all the same, and the next such step is recorded anew",
            stacklevel=2,
        )

    def _name(self) -> str:
        shape = self.shape
        return f"a step of {shape.batch} x {shape.tokens:,} tokens in {shape.precision}"


def _departure(found: Departure, places: tuple[Place, ...]) -> str:
    """Such as "op mm asked 4.0 KiB in post of block 3, tile 0; 8.0 KiB were expected"."""
    where = _place_name(places[found.place])
    who = f"op {found.op}" if found.op else "an unknown op"
    asked = f"{who} asked {format_bytes(found.bytes)} in {where}"
    if found.in_use:
        return f"{asked}, whose address was still in use"
    if not found.expected_bytes:
        return f"{asked}; nothing more was expected there"
    return f"{asked}; {format_bytes(found.expected_bytes)} were expected"


def _place_name(place: Place) -> str:
    stage = place.phase if place.stage == "between" else place.stage
    block = "" if place.block == NOWHERE else f" of block {place.block}"
    tile = "" if place.tile == NOWHERE else f", tile {place.tile}"
    return stage.replace("_", " ") + block + tile
