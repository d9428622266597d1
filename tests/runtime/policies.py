"""Policies set by hand, whatever the planner would have chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from memo_planner import BlockPolicy, Place, Policy
from memo_planner.schedule import CopyBudget
from memo_train.planning import StepPlanner
from memo_train.runtime import StepPolicy, WrappedModel
from memo_train.testing import Step, assert_same_bits, run_step

POLICIES = ("keep", "swap", "recompute", "mixed")


def block_policy(name: str, index: int, num_tiles: int) -> BlockPolicy:
    """keep, swap or recompute everything; mixed: all three, in another order in every block."""
    if name == "mixed":
        swap = (index + 1) % (num_tiles + 1)
        keep = min(1, num_tiles - swap)
        places = [Place.SWAP, Place.KEEP]
        return BlockPolicy(
            keep_tiles=keep,
            swap_tiles=swap,
            recompute_tiles=num_tiles - swap - keep,
            x=places[index % 2],
            o=places[index // 2 % 2],
        )
    place = Place.KEEP if name == "keep" else Place.SWAP
    counts = {f"{kind}_tiles": 0 for kind in ("keep", "swap", "recompute")}
    counts[f"{name}_tiles"] = num_tiles
    return BlockPolicy(**counts, x=place, o=place)


def chooser(
    name: str, tile_tokens: int, num_blocks: int, free_bytes: int = 2**40, num_groups: int = 1
) -> Callable[[int, int], StepPolicy]:
    """What `WrappedModel.choose_policy` is set to for a policy of `POLICIES`.

    num_groups: of heads; with more than one, what pre saves is parked, as plans have it.
    """

    def choose(batch: int, tokens: int) -> StepPolicy:
        tile = min(tile_tokens, tokens)
        num_tiles = -(-tokens // tile)
        blocks = tuple(block_policy(name, index, num_tiles) for index in range(num_blocks))
        policy = Policy(tokens=tokens, tile_tokens=tile, blocks=blocks, num_groups=num_groups)
        return StepPolicy(
            policy=policy,
            loss_tile_tokens=max(tile // 2, 1),
            copies=CopyBudget.same(
                num_blocks,
                in_flight_bytes=free_bytes,
                ahead_bytes=free_bytes,
                park_pre=num_groups > 1,
            ),
        )

    return choose


def wrapped_of(model: nn.Module) -> WrappedModel:
    """The runtime behind a wrapped model, also of a PEFT model."""
    get_base = getattr(model, "get_base_model", None)
    planner = (model if get_base is None else get_base())._memo_train
    assert isinstance(planner, StepPlanner)
    return planner.wrapped


def force(
    model: nn.Module, name: str, tile_tokens: int, free_bytes: int = 2**40, num_groups: int = 1
) -> nn.Module:
    """Make a wrapped model follow the policy `name` from now on; returns the model."""
    wrapped = wrapped_of(model)
    num_blocks = len(wrapped.parts.blocks)
    wrapped.choose_policy = chooser(name, tile_tokens, num_blocks, free_bytes, num_groups)
    return model


def step_of_all(model: nn.Module, tile_tokens: int, **batch: Any) -> Step:
    """The step of a wrapped model that every policy gives, bit for bit."""
    steps = {p: run_step(force(model, p, tile_tokens), **batch) for p in POLICIES}
    for step in steps.values():
        assert_same_bits(step, steps["keep"])
    return steps["keep"]
