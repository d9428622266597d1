"""What a policy will do to a step: bytes at every point, seconds of forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memo_planner.checks import check_fields, check_int, check_text
from memo_planner.cost import BlockShape, Choices, price
from memo_planner.errors import InvalidInput
from memo_planner.policy import Policy
from memo_planner.profile import Profile

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


@dataclass(frozen=True, kw_only=True)
class StepPoint:
    """Device bytes in use at one point of the step."""

    name: str
    device_bytes: int


def kept_bytes_by_block(profile: Profile, policy: Policy) -> list[int]:
    """Bytes each block leaves on the device after its forward."""
    shape = shape_of(profile, policy)
    return [int(b) for b in price(shape, Choices.of_blocks(policy.blocks)).kept_bytes]


def shape_of(profile: Profile, policy: Policy) -> BlockShape:
    """The block shape that a policy is about."""
    return BlockShape(profile=profile, tokens=policy.tokens, tile_tokens=policy.tile_tokens)


def step_points(profile: Profile, policy: Policy) -> list[StepPoint]:
    """Device bytes at every modelled point, in the order of the step."""
    shape = shape_of(profile, policy)
    held, total = [], 0
    for kept in kept_bytes_by_block(profile, policy):
        total += kept
        held.append(total)
    forward, backward = shape.peak_bytes("forward"), shape.peak_bytes("backward")
    points = [
        StepPoint(name=f"forward of block {i}", device_bytes=forward + kept)
        for i, kept in enumerate(held)
    ]
    points.append(StepPoint(name="loss", device_bytes=shape.peak_bytes("loss") + total))
    points += [
        StepPoint(name=f"backward of block {i}", device_bytes=backward + kept)
        for i, kept in reversed(list(enumerate(held)))
    ]
    return points


def predict(profile: Profile, policy: Policy, binds: tuple[str, ...] = ()) -> Prediction:
    """The figures of a step under `policy`; `binds` is handed through."""
    shape = shape_of(profile, policy)
    prices = price(shape, Choices.of_blocks(policy.blocks))
    top = max(step_points(profile, policy), key=lambda point: point.device_bytes)
    swap_s, recompute_s = math.fsum(prices.swap_s), math.fsum(prices.recompute_s)
    forward_stall_s = math.fsum(prices.forward_stall_s)
    backward_stall_s = math.fsum(prices.backward_stall_s)
    num_blocks = len(policy.blocks)
    stall_s = forward_stall_s + backward_stall_s
    return Prediction(
        device_peak_bytes=top.device_bytes,
        device_peak_point=top.name,
        host_peak_bytes=sum(int(b) for b in prices.swapped_bytes),
        extra_s=swap_s + recompute_s + stall_s + num_blocks * shape.overhead_s,
        recompute_s=recompute_s,
        stall_s=stall_s,
        step_forward_s=num_blocks * shape.forward_s + swap_s + forward_stall_s,
        step_backward_s=num_blocks * shape.backward_s + recompute_s + backward_stall_s,
        binds=binds,
    )
