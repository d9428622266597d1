"""The steps of one model on their way from recorded to planned.

A model's first step is served by size and recorded, of every other shape the second, and each that
is carried out in another way than the one before it of its shape. Its layout is
solved in the background; from then on request k of such a step gets address k. A step is what lies
between the model's forward and the end of its backward. A device records or serves one at a
time.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable

import torch

from memo_train.device import Device
from memo_train.layout._shape import Shape, ShapeReport, ShapeSteps
from memo_train.layout._solved import SolvedStep, recorded_step
from memo_train.runtime import StepMemory, precision
from memo_train.trace import PlaceMarks, PlaceRecorder

# Reentrant: the begin of a step ends the one under way.
_lock = threading.RLock()
_now: StepUnderWay | None = None


class StepUnderWay:
    """From a model's forward to the end of its backward; another step's begin ends it early."""

    def __init__(self, device: Device, steps: ShapeSteps, marks: PlaceMarks) -> None:
        self._device, self._steps, self._marks = device, steps, marks
        self._in_backward = self._is_complete = False

    @classmethod
    def begin(cls, device: Device, steps: ShapeSteps) -> StepUnderWay | None:
        """Let the device record the step or serve it by its layout; None where it does neither."""
        global _now
        with _lock:
            if _now is not None:
                _now.end()
            marks = _marks_of(device, steps)
            if marks is None:
                steps.went_by_size()
                return None
            _now = cls(device, steps, marks)
            marks.start()
            return _now

    @property
    def is_recording(self) -> bool:
        """Whether the step is recorded."""
        return isinstance(self._marks, PlaceRecorder)

    def __call__(self, stage: str, block: int, tile: int) -> None:
        """The step comes to a stage; its end is that of the backward pass of which it hears."""
        with _lock:
            # Another model's step has begun since, and the device serves that one.
            if _now is not self:
                return
            if not self._in_backward and stage.endswith("backward"):
                self._in_backward = True
                self._marks.begin("backward")
                # Called when autograd's queue is empty: only then is backward over.
                torch.autograd.Variable._execution_engine.queue_callback(self._complete)
            self._marks(stage, block, tile)

    def _complete(self) -> None:
        self._is_complete = True
        self.end()

    def end(self) -> None:
        """The step is over; one cut short is no step to learn from. Nothing if it was before."""
        global _now
        with _lock:
            if _now is not self:
                return
            _now = None
            if isinstance(self._marks, PlaceRecorder):
                self._steps.went_by_size()
                events = self._device.stop_recording()
                if self._is_complete:
                    smallest_bytes = self._device.smallest_planned_bytes
                    self._steps.solve(recorded_step(events, self._marks.places, smallest_bytes))
                return
            counts = self._device.end_step()
            if counts is not None and self._is_complete:
                self._steps.went(counts)


def _marks_of(device: Device, steps: ShapeSteps) -> PlaceMarks | None:
    if steps.wants_recording:
        steps.num_recordings += 1
        return PlaceRecorder(device)
    solved, layout = steps.solved, steps.layout
    if solved is None or layout is None or not device.begin_step(layout):
        return None
    return PlaceMarks(device, solved.places)


class StepLayouts(StepMemory):
    """Records, solves and serves the layouts of one model's steps on `device`.

    on: whether steps are recorded and served at all, where the device can.
    """

    def __init__(self, device: Device) -> None:
        self.on = True
        self._device = device
        self._shapes: dict[tuple[Shape, Hashable], ShapeSteps] = {}
        self._under_way: StepUnderWay | None = None

    @property
    def is_recording(self) -> bool:
        """Whether the step under way is recorded."""
        return self._under_way is not None and self._under_way.is_recording

    def begin(self, batch: int, tokens: int, how: Hashable) -> None:
        """A training step of that shape begins, carried out as `how` says."""
        self.end()
        if not self.on or self._device.why_no_layouts:
            return
        shape = Shape(
            batch=batch, tokens=tokens, precision=precision(self._device.torch_device.type)
        )
        steps = self._shapes.get((shape, how))
        if steps is None:
            # The first shape is likely to be the only one; of others most may never come again.
            likely = not self._shapes or any(shape == known for known, _ in self._shapes)
            steps = ShapeSteps(shape=shape, device=self._device, wants_recording=likely)
            self._shapes[shape, how] = steps
        # The second step of its shape: it does come again.
        elif steps.is_new:
            steps.wants_recording = True
        steps.take_solved()
        self._under_way = StepUnderWay.begin(self._device, steps)

    def __call__(self, stage: str, block: int, tile: int) -> None:
        """The step comes to a stage of `runtime.observe`."""
        if self._under_way is not None:
            self._under_way(stage, block, tile)

    def end(self) -> None:
        """No step of this model is under way any more."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.end()

    def wait(self) -> None:
        """Wait for every layout that is being solved."""
        for steps in self._shapes.values():
            steps.take_solved(wait=True)

    def solved(self, shape: Shape, how: Hashable) -> SolvedStep | None:
        """The layout of such steps, if it has been found."""
        steps = self._shapes.get((shape, how))
        return None if steps is None else steps.solved

    def adopt(self, shape: Shape, how: Hashable, solved: SolvedStep) -> None:
        """Take a layout that was found before; nothing where the device serves none.

        Raises: InvalidDeviceArgument if it is of a device with another alignment.
        """
        if self._device.why_no_layouts:
            return
        steps = ShapeSteps(shape=shape, device=self._device, wants_recording=False)
        steps.serve(solved)
        self._shapes[shape, how] = steps

    def reports(self) -> tuple[ShapeReport, ...]:
        """What became of each shape's steps, in the order of their first."""
        return tuple(steps.report() for steps in self._shapes.values())
