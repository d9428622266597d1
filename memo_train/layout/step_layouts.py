"""The steps of one model on their way from recorded to planned.

The first step of a shape is served by size and recorded. Its layout is solved in the background;
from then on request k of such a step gets address k. A step is what lies between the model's
forward and the end of its backward.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import torch

from memo_train.device.cpu import CpuDevice
from memo_train.layout.recorded import recorded_step
from memo_train.layout.report import ShapeReport
from memo_train.layout.shape import Shape, ShapeSteps
from memo_train.layout.solved import SolvedStep
from memo_train.runtime.ambient import precision
from memo_train.runtime.step_memory import StepMemory
from memo_train.trace.places import PlaceMarks, PlaceRecorder


class StepLayouts(StepMemory):
    """Records, solves and serves the layouts of one model's steps on `device`."""

    _holder: ClassVar[StepLayouts | None] = None
    """Whose step is under way: the device records or serves one at a time."""

    def __init__(self, device: CpuDevice) -> None:
        self.on = True
        self._device = device
        self._shapes: dict[tuple[Shape, Hashable], ShapeSteps] = {}
        self._step: ShapeSteps | None = None
        self._marks: PlaceMarks | None = None
        self._in_backward = self._is_complete = False

    @property
    def is_recording(self) -> bool:
        """Whether the step under way is recorded."""
        return isinstance(self._marks, PlaceRecorder)

    def begin(self, batch: int, tokens: int, how: Hashable) -> None:
        """A training step of that shape begins, carried out as `how` says."""
        self.end()
        if not self.on:
            return
        if StepLayouts._holder is not None:
            StepLayouts._holder.end()
        shape = Shape(batch=batch, tokens=tokens, precision=precision())
        step = self._shapes.setdefault((shape, how), ShapeSteps(shape=shape))
        step.take_solved()
        self._marks = self._start(step)
        if self._marks is None:
            step.went_by_size()
            return
        StepLayouts._holder, self._step = self, step
        self._in_backward = self._is_complete = False
        self._marks.start()

    def _start(self, step: ShapeSteps) -> PlaceMarks | None:
        """Let the device record the step or serve it by its layout; None where it does neither."""
        if step.wants_recording:
            step.num_recordings += 1
            return PlaceRecorder(self._device)
        solved = step.solved
        if solved is None or not self._device.begin_step(solved.native):
            return None
        return PlaceMarks(self._device, solved.recorded.places)

    def __call__(self, stage: str, block: int, tile: int) -> None:
        """The step comes to a stage; its end is that of the backward pass of which it hears."""
        if self._marks is None:
            return
        if not self._in_backward and stage.endswith("backward"):
            self._in_backward = True
            self._marks.begin("backward")
            engine = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._complete)
        self._marks(stage, block, tile)

    def _complete(self) -> None:
        """Backward has run to its end."""
        self._is_complete = True
        self.end()

    def end(self) -> None:
        """The step under way, if any, is over; one cut short is no step to learn from."""
        marks, step = self._marks, self._step
        self._marks = self._step = None
        if marks is None or step is None:
            return
        StepLayouts._holder = None
        if isinstance(marks, PlaceRecorder):
            step.went_by_size()
            events = self._device.stop_recording()
            if self._is_complete:
                step.solve(recorded_step(events, marks.places))
            return
        counts = self._device.end_step()
        if counts is not None and self._is_complete:
            step.went(counts)

    def wait(self) -> None:
        """Wait for every layout that is being solved."""
        for step in self._shapes.values():
            step.take_solved(wait=True)

    def reports(self) -> tuple[ShapeReport, ...]:
        """What became of each shape's steps, in the order of their first."""
        return tuple(step.report() for step in self._shapes.values())
