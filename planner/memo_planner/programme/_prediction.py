"""What a policy will do to a step: bytes at every point, seconds of forward and backward."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from memo_planner.limits import Limits
from memo_planner.plan import Prediction
from memo_planner.policy import Place, Policy
from memo_planner.profile import Profile
from memo_planner.programme._alive import StepPoint, alive_points, free_bytes
from memo_planner.programme._cost import BlockShape, Choices, Prices, price

_NO_LIMITS = Limits(device_bytes=None, host_bytes=None)


def kept_bytes_by_block(profile: Profile, policy: Policy) -> list[int]:
    """Bytes each block leaves on the device after its forward."""
    return _by_block(profile, policy)[0]


def shape_of(profile: Profile, policy: Policy) -> BlockShape:
    """The block shape that a policy is about."""
    return BlockShape(
        profile=profile,
        tokens=policy.tokens,
        tile_tokens=policy.tile_tokens,
        attention_again=any(block.o is Place.RECOMPUTE for block in policy.blocks),
    )


def step_points(profile: Profile, policy: Policy) -> list[StepPoint]:
    """Device bytes that a limit must leave at every point, in the order of the step.

    As if every block were of the kind that takes most, with room for holes between tensors.
    """
    shape = shape_of(profile, policy)
    kept_bytes = price(shape, Choices.of_blocks(policy.blocks)).kept_bytes
    # Backward of block i has what blocks 0 to i keep: later ones have given theirs back.
    held, total = [], 0
    for kept in kept_bytes:
        total += int(kept)
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


def peak_points(profile: Profile, policy: Policy, limits: Limits = _NO_LIMITS) -> list[StepPoint]:
    """Device bytes alive at every point; `step_points` where no kinds of blocks were measured.

    limits: what they leave free is used to fetch what was swapped before its turn.
    """
    room = step_points(profile, policy)
    if not profile.kinds:
        return room
    backward = room[len(policy.blocks) + 1 :]
    ahead = [free_bytes(profile, limits, point) for point in reversed(backward)]
    return alive_points(profile, policy, kept_bytes_by_block(profile, policy), ahead)


def extra_s(profile: Profile, policy: Policy) -> float:
    """Seconds that a step under `policy` takes beyond a plain one."""
    shape, prices = _priced(profile, policy)
    return _added_s(shape, prices, len(policy.blocks))


def _added_s(shape: BlockShape, prices: Prices, num_blocks: int) -> float:
    stall_s = math.fsum(prices.forward_stall_s) + math.fsum(prices.backward_stall_s)
    computed_s = math.fsum(prices.swap_s) + math.fsum(prices.recompute_s)
    return computed_s + stall_s + num_blocks * shape.overhead_s


def host_bytes(profile: Profile, policy: Policy) -> int:
    """Most bytes on the host, in its whole pages."""
    return sum(_by_block(profile, policy)[1]) + _planes_bytes(shape_of(profile, policy))


def _priced(profile: Profile, policy: Policy) -> tuple[BlockShape, Prices]:
    shape = shape_of(profile, policy)
    return shape, price(shape, Choices.of_blocks(policy.blocks))


def predict(
    profile: Profile,
    policy: Policy,
    binds: tuple[str, ...] = (),
    limits: Limits = _NO_LIMITS,
) -> Prediction:
    """The figures of a step under `policy`; `binds` is handed through. limits: see `peak_points`"""
    shape, prices = _priced(profile, policy)
    top = max(peak_points(profile, policy, limits), key=lambda point: point.device_bytes)
    room_bytes = max(point.device_bytes for point in step_points(profile, policy))
    swap_s, recompute_s = math.fsum(prices.swap_s), math.fsum(prices.recompute_s)
    forward_stall_s = math.fsum(prices.forward_stall_s)
    backward_stall_s = math.fsum(prices.backward_stall_s)
    num_blocks = len(policy.blocks)
    stall_s = forward_stall_s + backward_stall_s
    return Prediction(
        device_peak_bytes=top.device_bytes,
        device_peak_point=top.name,
        device_room_bytes=room_bytes,
        host_peak_bytes=host_bytes(profile, policy),
        extra_s=_added_s(shape, prices, num_blocks),
        recompute_s=recompute_s,
        stall_s=stall_s,
        step_forward_s=num_blocks * shape.forward_s + swap_s + forward_stall_s,
        step_backward_s=num_blocks * shape.backward_s + recompute_s + backward_stall_s,
        binds=binds,
    )


def _by_block(profile: Profile, policy: Policy) -> tuple[list[int], list[int]]:
    """Bytes that each block keeps on the device and sends to the host, by its own kind."""
    kinds = profile.kind_of_block or (0,) * len(policy.blocks)
    choices = Choices.of_blocks(policy.blocks)
    prices = [price(shape_of(each, policy), choices) for each in _profiles(profile, policy)]
    kept = [int(prices[kind].kept_bytes[block]) for block, kind in enumerate(kinds)]
    sent = [int(prices[kind].swapped_bytes[block]) for block, kind in enumerate(kinds)]
    if profile.kinds:
        kept = [n - _shared_bytes(profile, policy, block) for block, n in enumerate(kept)]
        rounded = [_rounding_bytes(profile, policy, block) for block in range(len(sent))]
        sent = [a + b for a, b in zip(sent, rounded, strict=True)]
    return kept, sent


def _shared_bytes(profile: Profile, policy: Policy, block: int) -> int:
    """What a block's kept tiles have once, and prices count in pre and in post."""
    shape = (policy.tokens, policy.tile_tokens)
    saved = profile.kinds[profile.kind_of_block[block]].saved(*shape)
    return int(saved.shared_bytes_per_token * policy.blocks[block].kept_tokens(*shape))


_PAGE_BYTES = 4096
"""The host pool gives whole pages."""

_NUM_PLANES = 8
"""Ranges of the host: for q, k, v, the gradients of o, of y and in part of x, and two arguments."""


def _planes_bytes(shape: BlockShape) -> int:
    """What groups of heads take on the host, in whole pages.

    What pre saved of a tile is about as many tensors as its x goes into them, and one; they fill
    their pages where x does so four times over, for some are a half or a quarter as large.
    """
    profile = shape.profile
    if profile.num_groups == 1:
        return 0
    x_per_token = max(profile.x_bytes_per_token, 1.0)
    of_tile = math.ceil(profile.pre_bytes_per_token / x_per_token) + 1
    last = shape.tokens - (shape.num_tiles - 1) * shape.tile_tokens
    tiles = [shape.tile_tokens] * (shape.num_tiles - 1) + [last]
    ragged = sum(bool(math.ceil(x_per_token * n) % (4 * _PAGE_BYTES)) for n in tiles)
    return shape.planes_bytes + (_NUM_PLANES + of_tile * ragged) * _PAGE_BYTES


def _rounding_bytes(profile: Profile, policy: Policy, block: int) -> int:
    """What pages add to the tensors a block sends: x, o, what goes with o, and each tile's.

    Of a tile's there are about as many as its x goes into them, each as large as that.
    """
    one, kind = policy.blocks[block], profile.kinds[profile.kind_of_block[block]]
    saved = kind.saved(policy.tokens, policy.tile_tokens)
    wholes = [saved.x_bytes_per_token] * (one.x is Place.SWAP)
    wholes += [saved.o_bytes_per_token, saved.attention_bytes_per_token] * (one.o is Place.SWAP)
    rounding = sum(_to_page(per_token * policy.tokens) for per_token in wholes)
    per_token = saved.pre_bytes_per_token + saved.post_bytes_per_token + saved.qkv_bytes_per_token
    x_per_token = max(saved.x_bytes_per_token, 1.0)
    last = min(one.swap_tiles * policy.tile_tokens, policy.tokens) % policy.tile_tokens
    tiles = [policy.tile_tokens] * (one.swap_tiles - (last > 0)) + [last] * (last > 0)
    return rounding + math.ceil(per_token / x_per_token) * sum(
        _to_page(x_per_token * tokens) for tokens in tiles
    )


def _to_page(num_bytes: float) -> int:
    return -math.ceil(num_bytes) % _PAGE_BYTES


def _profiles(profile: Profile, policy: Policy) -> list[Profile]:
    """A profile of each kind of block, as it saves in tiles of that size."""
    found = []
    for kind in profile.kinds:
        own: dict[str, Any] = kind.saved(policy.tokens, policy.tile_tokens).profile_figures
        found.append(replace(profile, kinds=(), kind_of_block=(), **own))
    return found or [profile]
