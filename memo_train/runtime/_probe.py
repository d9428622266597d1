"""What the probe found out about a block.

Proves on small inputs, before training, how each block may be run.

Three tests. The graph of one plain run shows what a block differentiates: anything besides its
input and its own parameters, and it cannot be one autograd function of these. With every token but
one tile's set to NaN, that tile must stay finite up to the cut and after it: NaN crosses any
arithmetic, also a mixing path whose gate is zero. And the tiled run, with the q, k, v of suspended
frames poisoned, must give what the whole run gives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn

from memo_planner.policy import BlockPolicy, Place
from memo_train.device import Device
from memo_train.errors import MemoError
from memo_train.runtime._ambient import preserved_rng
from memo_train.runtime._block import BlockPass
from memo_train.runtime._block_state import AtCut, BlockSpec
from memo_train.runtime._cut import Frame, intercept
from memo_train.runtime._parts import ModelParts
from memo_train.runtime._probe_calls import (
    BlockCall,
    evaluating,
    kept_buffers,
    record_calls,
)
from memo_train.runtime._shadow import trainable_parameters
from memo_train.runtime._swap import CopiesInFlight
from memo_train.runtime._tile import TokenDims, learn_token_dims, split_output, tile_of


class HowToRun(Enum):
    """By token tiles; checkpointed whole with x swapped; or as it is, with nothing saved."""

    TILED = "tiled"
    CHECKPOINTED = "checkpointed"
    PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class BlockVerdict:
    """How a block may be run, and why not by tiles.

    rest: what it returns besides y, without tensors; None if it returns y alone. hands_on_tensors:
    whether there are tensors besides y. at_cut and token_dims hold for tiles only.
    """

    how: HowToRun
    because: str | None = None
    at_cut: AtCut = AtCut.HOLD
    token_dims: TokenDims = field(default_factory=dict)
    rest: tuple[Any, ...] | None = None
    hands_on_tensors: bool = False

    def returning(self, rest: tuple[Any, ...] | None) -> BlockVerdict:
        """The same for a block that was seen to return `rest` besides y."""
        if all(item is None or isinstance(item, int | float | str) for item in rest or ()):
            return dataclasses.replace(self, rest=rest)
        return dataclasses.replace(self, hands_on_tensors=True)


_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 2e-2}
_NUM_TILES = 3
_X_DIMS = 3
NOT_RUNNABLE = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)


def probe_blocks(parts: ModelParts, device: Device) -> tuple[BlockVerdict, ...]:
    """Find out how each block may be run; the model is left as it was.

    Raises: UnsupportedModel when a block has cross-attention.
    """
    tokens = parts.probe_tokens()
    with evaluating(parts.causal_lm), preserved_rng(device.generators):
        shorter, calls = (record_calls(parts, n, device) for n in (tokens - 1, tokens))
        return tuple(
            _probe_block(
                block, call, learn_token_dims(short.arguments, call.arguments), device
            ).returning(call.rest)
            for block, short, call in zip(parts.blocks, shorter, calls, strict=True)
        )


def _probe_block(
    block: nn.Module, call: BlockCall, dims: TokenDims, device: Device
) -> BlockVerdict:
    how, why = judge_plain_run(block, call)
    if how is not HowToRun.TILED:
        return BlockVerdict(how=how, because=why)
    probe = _TileProbe(block, call, dims, device)
    mixing = probe.why_not_token_wise()
    if mixing is not None:
        return BlockVerdict(how=HowToRun.CHECKPOINTED, because=mixing)
    difference: str | None = None
    for at_cut, proven in ((AtCut.POISON, AtCut.RELEASE), (AtCut.HOLD, AtCut.HOLD)):
        difference = probe.difference(at_cut)
        if difference is None:
            return BlockVerdict(how=HowToRun.TILED, at_cut=proven, token_dims=dims)
    return BlockVerdict(how=HowToRun.CHECKPOINTED, because=difference)


def judge_plain_run(block: nn.Module, call: BlockCall) -> tuple[HowToRun, str | None]:
    """Run the block once with a graph and look at what it did to its input and outputs.

    Gives TILED if nothing speaks against it yet; else the other way to run it, and why.
    """
    if call.as_is is not None:
        return HowToRun.PLAIN, call.as_is
    x = call.x.clone().requires_grad_()
    own = {id(parameter) for parameter in trainable_parameters(block)} | {id(x)}
    with torch.enable_grad():
        seen = x.clone()  # no leaf, as in a model, so that writing to it is allowed
        version = seen._version
        y, rest = split_output(block.forward(seen, *call.args, **call.kwargs))
    if seen._version != version:
        return HowToRun.PLAIN, "it writes to its input"
    if x.dim() != _X_DIMS:
        return HowToRun.CHECKPOINTED, "its input is not [batch, tokens, hidden]"
    if any(isinstance(output, torch.Tensor) for output in rest or ()):
        return HowToRun.CHECKPOINTED, "it returns more tensors than its output"
    if any(id(leaf) not in own for leaf in _leaves(y)):
        return (
            HowToRun.CHECKPOINTED,
            "it differentiates tensors that are neither its input nor its own parameters",
        )
    return HowToRun.TILED, None


def _leaves(y: torch.Tensor) -> Iterator[torch.Tensor]:
    """The leaf tensors that the graph of y accumulates gradients into."""
    nodes, visited = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            yield variable
        nodes.extend(following for following, _ in node.next_functions)


class _TileProbe:
    """Runs one block by tiles on its recorded call, without gradients."""

    def __init__(self, block: nn.Module, call: BlockCall, dims: TokenDims, device: Device) -> None:
        self._block, self._call = block, call
        self._tokens = call.x.shape[1]
        self._spec = BlockSpec(
            module=block,
            forward=block.forward,
            policy=BlockPolicy(
                keep_tiles=0, swap_tiles=0, recompute_tiles=_NUM_TILES, x=Place.KEEP, o=Place.KEEP
            ),
            tile_tokens=math.ceil(self._tokens / _NUM_TILES),
            device=device,
            in_flight=CopiesInFlight(0),
            at_cut=AtCut.HOLD,
            token_dims=dims,
        )

    def why_not_token_wise(self) -> str | None:
        """Whether NaN in all other tokens reaches the first or the last tile, in training mode."""
        size = self._spec.tile_tokens
        first, last = range(size), range(self._tokens - size, self._tokens)
        training = self._block.training
        try:
            with torch.no_grad(), kept_buffers(self._block), intercept():
                self._block.train()
                untouched = self._is_untouched(first) and self._is_untouched(last)
        except (MemoError, *NOT_RUNNABLE) as error:
            return str(error)
        finally:
            self._block.train(training)
        return None if untouched else "its tokens mix outside attention"

    def difference(self, at_cut: AtCut) -> str | None:
        """Why the tiled run differs from the whole one, or None if it does not."""
        call, spec = self._call, dataclasses.replace(self._spec, at_cut=at_cut)
        try:
            with torch.no_grad():
                y, _ = split_output(self._block.forward(call.x, *call.args, **call.kwargs))
                block_pass = BlockPass(spec, (), call.args, call.kwargs, record=False)
                tiled = block_pass.forward(call.x, x_needs_grad=False)
        except (MemoError, *NOT_RUNNABLE) as error:
            return f"it does not run on a part of the tokens ({error})"
        worst = float((tiled - y).abs().max()) / max(float(y.abs().max()), 1e-30)
        if worst <= _TOLERANCE.get(y.dtype, 1e-4):
            return None
        return f"its tiled and whole runs differ by {worst:.2g} of its output"

    def _is_untouched(self, span: range) -> bool:
        frame = Frame(self._block.forward, self._call.x.device.type)
        try:
            cut = frame.run_to_cut(
                (_only(self._call.x, span, 1), *self._call.args), self._call.kwargs
            )
            qkv = (cut.q, cut.k, cut.v)
            before = all(bool(tile_of(t, span, 2).isfinite().all()) for t in qkv)
            o = cut.call(*(torch.zeros_like(t) for t in qkv), **cut.options)
            y, _ = split_output(frame.resume(_only(o, span, cut.o_token_dim)))
        finally:
            frame.close()
        return before and bool(tile_of(y, span).isfinite().all())


def _only(tensor: torch.Tensor, span: range, dim: int) -> torch.Tensor:
    """A copy of `tensor` with NaN in all tokens outside `span`."""
    kept = torch.full_like(tensor, math.nan)
    tile_of(kept, span, dim).copy_(tile_of(tensor, span, dim))
    return kept
