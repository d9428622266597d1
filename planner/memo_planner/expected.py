"""What a plan expects of its step: bytes and seconds, and what binds."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_fields, check_int, check_text
from memo_planner.errors import InvalidInput

BINDS = ("device", "host", "forward window", "backward window")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Figures of one step under a policy. Seconds cover the blocks, not embedding or loss.

    Attributes:
        device_peak_bytes, device_peak_point: most bytes in use on the device, and where.
        host_peak_bytes: bytes on the host at the end of forward.
        extra_s: seconds over a step without tiles that keeps everything:
            recompute_s + stall_s + the overhead of tiling and swapping.
        step_forward_s, step_backward_s: all blocks, with stalls and recomputation.
        binds: those of `BINDS` without which, one at a time, the plan would be faster.
    """

    device_peak_bytes: int
    device_peak_point: str
    host_peak_bytes: int
    extra_s: float
    recompute_s: float
    stall_s: float
    step_forward_s: float
    step_backward_s: float
    binds: tuple[str, ...]

    def __post_init__(self) -> None:
        check_int("Prediction.device_peak_bytes", self.device_peak_bytes, 0, 2**128)
        check_int("Prediction.host_peak_bytes", self.host_peak_bytes, 0, 2**128)
        check_text("Prediction.device_peak_point", self.device_peak_point)
        check_fields(self, tuple(f for f in self.__dataclass_fields__ if f.endswith("_s")))
        if self.binds != tuple(name for name in BINDS if name in self.binds):
            raise InvalidInput(f"Prediction.binds is {self.binds}; it holds some of {BINDS}, once")
