"""Whether a prediction stays within limits, and what is short where it does not."""

from __future__ import annotations

from memo_planner.cost import Choices, price
from memo_planner.feasible import highest_point
from memo_planner.limits import Limits
from memo_planner.policy import Policy
from memo_planner.expected import Prediction
from memo_planner.prediction import shape_of
from memo_planner.profile import Profile

Excess = tuple[str, str, int, int]
"""What is short, where, bytes needed, limit."""


def excesses(told: Prediction, limits: Limits) -> list[Excess]:
    """Every limit that `told` exceeds; none if it fits."""
    pairs = (
        (told.device_peak_point, "device", told.device_peak_bytes, limits.device_bytes),
        ("swapped tensors", "host", told.host_peak_bytes, limits.host_bytes),
    )
    return [
        (what, where, need_bytes, limit_bytes)
        for what, where, need_bytes, limit_bytes in pairs
        if limit_bytes is not None and need_bytes > limit_bytes
    ]


def fits(profile: Profile, policy: Policy, limits: Limits) -> bool:
    """Whether a prediction of `policy` would exceed no limit, without making one.

    All kept bytes are on the device when forward ends, where the step's highest point is.
    """
    shape = shape_of(profile, policy)
    kinds = list(dict.fromkeys(policy.blocks))
    prices = price(shape, Choices.of_blocks(kinds))
    counts = [policy.blocks.count(kind) for kind in kinds]
    kept = sum(n * int(b) for n, b in zip(counts, prices.kept_bytes, strict=True))
    swapped = sum(n * int(b) for n, b in zip(counts, prices.swapped_bytes, strict=True))
    device, host = limits.device_bytes, limits.host_bytes
    if device is not None and highest_point(shape)[1] + kept > device:
        return False
    return host is None or swapped <= host
