"""What a plan made from a machine and a model is about, beside its profile."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_fields, check_int, check_text
from memo_planner.expected import Prediction


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The job around a rank's step: enough for step time and MFU.

    Attributes:
        strategy: what decided the policy. hardware, parallel: names for people.
        gpus: devices of the job; ranks_on_node: those that share one node's host memory.
        ranks_of_sequence: those that share one sequence.
        micro_steps: passes of a rank in one optimiser step.
        step_flops: of the whole job and one optimiser step, nothing counted twice.
        peak_flops: of one device.
        outside_s: head and loss, seconds of one micro step.

    Raises: InvalidInput.
    """

    strategy: str
    hardware: str
    parallel: str
    gpus: int
    ranks_on_node: int
    ranks_of_sequence: int
    micro_steps: int
    step_flops: float
    peak_flops: float
    outside_s: float

    def __post_init__(self) -> None:
        for name in ("strategy", "hardware", "parallel"):
            check_text(f"Setting.{name}", getattr(self, name))
        for name in ("gpus", "ranks_on_node", "ranks_of_sequence", "micro_steps"):
            check_int(f"Setting.{name}", getattr(self, name), 1)
        check_fields(self, ("outside_s",))
        # A long step on many devices has more FLOPs than any other figure may be large.
        check_fields(self, ("peak_flops",), least=1.0)
        check_fields(self, ("step_flops",), least=1.0, most=2.0**120)

    def step_s(self, prediction: Prediction) -> float:
        """Seconds of one optimiser step; the optimiser itself is not in it."""
        blocks_s = prediction.step_forward_s + prediction.step_backward_s
        return self.micro_steps * (blocks_s + self.outside_s)

    def mfu(self, prediction: Prediction) -> float:
        """Model FLOPs per second over the devices' peak, from 0 to 1. Source: MEMO, set-up."""
        return self.step_flops / (self.step_s(prediction) * self.gpus * self.peak_flops)
