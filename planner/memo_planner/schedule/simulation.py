"""What a simulated step came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memo_planner.schedule.memory import Floats, MemoryCurve
from memo_planner.schedule.operation import Stream
from memo_planner.schedule.schedule import Schedule
from memo_planner.schedule.speeds import Speeds

CAUSES = ("copies to host", "copies to device", "collectives", "the end of copies")
"""What compute waits for; the last is copies that outlast the last computation."""


@dataclass(frozen=True, kw_only=True)
class Stall:
    """Compute stood still for `seconds` before `operation`, because of one of `CAUSES`."""

    operation: int
    cause: str
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulation:
    """One step of `schedule` at `speeds` on a clock.

    Attributes:
        starts_s, ends_s: [operations] float64, seconds since the step began.
        busy_s: seconds that each stream works. stalls: in the order of the step.
        device, host: bytes in use over time, the device's with the state.
    """

    schedule: Schedule
    speeds: Speeds
    step_s: float
    starts_s: Floats
    ends_s: Floats
    busy_s: Mapping[Stream, float]
    stalls: tuple[Stall, ...]
    device: MemoryCurve
    host: MemoryCurve

    @property
    def compute_s(self) -> float:
        """Seconds of computation."""
        return self.busy_s[Stream.COMPUTE]

    @property
    def stall_s(self) -> float:
        """Seconds of the step without computation."""
        return self.step_s - self.compute_s

    @property
    def stall_s_by_cause(self) -> dict[str, float]:
        """Seconds of stalls for each of `CAUSES`."""
        total = dict.fromkeys(CAUSES, 0.0)
        for stall in self.stalls:
            total[stall.cause] += stall.seconds
        return total

    @property
    def mfu(self) -> float | None:
        """The model's FLOPs over what the device could have done in the step; None if unknown.

        Source: MEMO §set-up of the experiments.
        """
        flops, peak = self.schedule.flops, self.speeds.peak_flops_per_s
        if flops is None or peak is None or self.step_s == 0:
            return None
        return flops / (self.step_s * peak)
