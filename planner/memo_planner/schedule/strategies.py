"""Whole-block strategies on the clock, from a profile: the peers of the plan by token tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

from memo_planner.checks import check_int, check_number
from memo_planner.cost import BlockShape
from memo_planner.errors import InvalidInput
from memo_planner.policy import MAX_TOKENS
from memo_planner.profile import Profile
from memo_planner.schedule.layers import LayerCosts, LayerStep, layer_operations, rounding_layers
from memo_planner.schedule.of_plan import StepRest, hash_of
from memo_planner.schedule.schedule import VERSION, Schedule

_ROUNDING_BUFFERS = 2


def strategy_schedule(
    name: str, profile: Profile, tokens: int, *, alpha: float = 1.0, rest: StepRest | None = None
) -> Schedule:
    """A step of `name` (one of `STRATEGIES`) over `tokens` tokens on blocks of `profile`.

    alpha: swapped part of what is neither x nor o, for `memo-paper`. Blocks run whole, so scratch
    is that of one tile of all tokens. Raises: InvalidInput.
    Source: MEMO §alpha for `memo-paper`, its ablation for `swap-all` and `checkpoint`.
    """
    check_int("tokens", tokens, 1, MAX_TOKENS)
    if check_number("alpha", alpha) > 1:
        raise InvalidInput(f"alpha is {alpha}; it must be from 0 to 1")
    if name not in STRATEGIES:
        raise InvalidInput(f"strategy is {name!r}; it must be one of {sorted(STRATEGIES)}")
    rest = rest or StepRest()
    shape = BlockShape(profile=profile, tokens=tokens, tile_tokens=tokens)
    step = STRATEGIES[name](shape, alpha, rest)
    parts = {"strategy": name, "profile": asdict(profile), "tokens": tokens, "alpha": alpha}
    return Schedule(
        version=VERSION,
        strategy=name,
        model=profile.model,
        tokens=tokens,
        state_bytes=profile.state_bytes,
        flops=rest.flops,
        inputs_hash=hash_of({**parts, "rest": asdict(rest)}),
        operations=layer_operations(step),
    )


def _costs(shape: BlockShape, **other: float) -> LayerCosts:
    """One block's costs; `other` are fields of `LayerCosts`."""
    x_o = shape.x_bytes + shape.o_bytes
    profile, tokens = shape.profile, shape.tokens
    forward, backward = (profile.peak_bytes(p, tokens, tokens) for p in ("forward", "backward"))
    costs: dict[str, float] = {
        "forward_s": shape.forward_s,
        "backward_s": shape.backward_s,
        "forward_scratch_bytes": max(forward - x_o, 0),
        "backward_scratch_bytes": max(backward - x_o, 0),
    }
    return LayerCosts(**(costs | other))  # type: ignore[arg-type]


def _step(
    shape: BlockShape, layers: tuple[LayerCosts, ...], rest: StepRest, buffers: int | None = None
) -> LayerStep:
    profile, tokens = shape.profile, shape.tokens
    return LayerStep(
        layers=layers,
        num_buffers=buffers,
        loss_s=rest.loss_s,
        loss_scratch_bytes=profile.peak_bytes("loss", tokens, tokens),
        optimizer_s=rest.optimizer_s,
    )


def _tile_bytes(shape: BlockShape) -> int:
    return math.ceil(shape.profile.tile_bytes_per_token * shape.tokens)


def _none(shape: BlockShape, alpha: float, rest: StepRest) -> LayerStep:
    kept = shape.x_bytes + shape.o_bytes + _tile_bytes(shape)
    return _step(shape, (_costs(shape, kept_bytes=kept),) * shape.profile.num_blocks, rest)


def _checkpoint(shape: BlockShape, alpha: float, rest: StepRest) -> LayerStep:
    costs = _costs(
        shape,
        kept_bytes=shape.x_bytes,
        recompute_s=shape.forward_s,
        recomputed_bytes=shape.o_bytes + _tile_bytes(shape),
    )
    return _step(shape, (costs,) * shape.profile.num_blocks, rest)


def _checkpoint_offload(shape: BlockShape, alpha: float, rest: StepRest) -> LayerStep:
    costs = _costs(
        shape,
        swapped_bytes=shape.x_bytes,
        recompute_s=shape.forward_s,
        recomputed_bytes=shape.o_bytes + _tile_bytes(shape),
    )
    return _step(shape, (costs,) * shape.profile.num_blocks, rest, _ROUNDING_BUFFERS)


def _swap_all(shape: BlockShape, alpha: float, rest: StepRest) -> LayerStep:
    return _memo_paper(shape, 1.0, rest)


def _memo_paper(shape: BlockShape, alpha: float, rest: StepRest) -> LayerStep:
    swapped = math.ceil(alpha * _tile_bytes(shape))
    recompute_s = (1.0 - alpha) * shape.profile.times.tilewise_s_per_token * shape.tokens
    costs = _costs(
        shape,
        forward_s=shape.forward_s + alpha * shape.profile.times.swap_s_per_token * shape.tokens,
        swapped_bytes=shape.x_bytes + shape.o_bytes + swapped,
        recompute_s=recompute_s,
        recomputed_bytes=_tile_bytes(shape) - swapped,
    )
    layers = rounding_layers(costs, shape.profile.num_blocks)
    return _step(shape, layers, rest, _ROUNDING_BUFFERS)


STRATEGIES: dict[str, Callable[[BlockShape, float, StepRest], LayerStep]] = {
    "none": _none,
    "checkpoint": _checkpoint,
    "checkpoint-offload": _checkpoint_offload,
    "memo-paper": _memo_paper,
    "swap-all": _swap_all,
}
"""What puts each strategy's step together."""
