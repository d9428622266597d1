"""How blocks would be run, found out without values: from shapes, graphs and a try by tiles."""

from __future__ import annotations

import math

import torch
from torch import nn

from memo_planner.policy import BlockPolicy, Place
from memo_train.device.device import Device
from memo_train.errors import MemoError
from memo_train.runtime.block import BlockPass
from memo_train.runtime.block_state import AtCut, BlockSpec
from memo_train.runtime.parts import ModelParts
from memo_train.runtime.probe import NOT_RUNNABLE, judge_plain_run
from memo_train.runtime.probe_calls import BlockCall, evaluating, record_calls
from memo_train.runtime.swap import CopiesInFlight
from memo_train.runtime.tiles import TokenDims, learn_token_dims
from memo_train.runtime.verdict import BlockVerdict, HowToRun

_NUM_TILES = 3


def assume_verdicts(parts: ModelParts, device: Device) -> tuple[BlockVerdict, ...]:
    """What the probe would find out, where that needs no values.

    A block that runs by tiles is taken to be token-wise outside attention: only a real run proves
    it. Raises: UnsupportedModel.
    """
    tokens = parts.probe_tokens()
    with evaluating(parts.causal_lm):
        shorter, calls = (record_calls(parts, n, device) for n in (tokens - 1, tokens))
        return tuple(
            _assume(block, call, learn_token_dims(short.arguments, call.arguments), device)
            for block, short, call in zip(parts.blocks, shorter, calls, strict=True)
        )


def _assume(block: nn.Module, call: BlockCall, dims: TokenDims, device: Device) -> BlockVerdict:
    how, because = judge_plain_run(block, call)
    if how is HowToRun.TILED:
        because = _why_not_by_tiles(block, call, dims, device)
        how = HowToRun.TILED if because is None else HowToRun.CHECKPOINTED
    if how is not HowToRun.TILED:
        return BlockVerdict(how=how, because=because)
    return BlockVerdict(how=how, at_cut=AtCut.RELEASE, token_dims=dims)


def _why_not_by_tiles(
    block: nn.Module, call: BlockCall, dims: TokenDims, device: Device
) -> str | None:
    """Why a block cannot be run by tiles, or None if it can."""
    spec = BlockSpec(
        module=block,
        forward=block.forward,
        policy=BlockPolicy(
            keep_tiles=0, swap_tiles=0, recompute_tiles=_NUM_TILES, x=Place.KEEP, o=Place.KEEP
        ),
        tile_tokens=math.ceil(call.x.shape[1] / _NUM_TILES),
        device=device,
        in_flight=CopiesInFlight(0),
        at_cut=AtCut.RELEASE,
        token_dims=dims,
    )
    try:
        with torch.no_grad():
            block_pass = BlockPass(spec, (), call.args, call.kwargs, record=False)
            block_pass.forward(call.x, x_needs_grad=False)
    except (MemoError, *NOT_RUNNABLE) as error:
        return f"it does not run on a part of the tokens ({error})"
    return None
