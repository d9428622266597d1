"""The one step that the device records or serves by its layout right now."""

from __future__ import annotations

import threading

import torch

from memo_train.device.device import Device
from memo_train.layout.recorded import recorded_step
from memo_train.layout.shape import ShapeSteps
from memo_train.trace.places import PlaceMarks, PlaceRecorder

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
            if _now is not self:
                return
            if not self._in_backward and stage.endswith("backward"):
                self._in_backward = True
                self._marks.begin("backward")
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
