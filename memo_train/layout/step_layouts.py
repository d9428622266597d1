"""The steps of one model on their way from recorded to planned.

The first step of a shape is served by size and recorded. Its layout is solved in the background;
from then on request k of such a step gets address k. A step is what lies between the model's
forward and the end of its backward.
"""

from __future__ import annotations

from collections.abc import Hashable

from memo_train.device.device import Device
from memo_train.layout.report import ShapeReport
from memo_train.layout.shape import Shape, ShapeSteps
from memo_train.layout.solved import SolvedStep
from memo_train.layout.under_way import StepUnderWay
from memo_train.runtime.ambient import precision
from memo_train.runtime.step_memory import StepMemory


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
        steps = self._shapes.setdefault((shape, how), ShapeSteps(shape=shape, device=self._device))
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
