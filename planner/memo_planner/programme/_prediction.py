"""What a policy will do to a step: bytes at every point, seconds of forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass

from memo_planner.plan import Prediction
from memo_planner.policy import Policy
from memo_planner.profile import Profile
from memo_planner.programme._cost import BlockShape, Choices, price


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
    # Backward of block i has what blocks 0 to i keep: later ones have given theirs back.
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
