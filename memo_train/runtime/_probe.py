"""What the probe found out about a block.

Proves on small inputs, before training, how each block may be run.

Three tests. The graph of one plain run shows what a block differentiates: anything besides its
input and its own parameters, and it cannot be one autograd function of these. With all tokens but
some set to NaN, these must stay finite up to the cut and after it: NaN crosses any arithmetic, also
a mixing path whose gate is zero. And the tiled run, with the q, k, v of suspended frames poisoned,
must give what the whole run gives: its output on all probed tokens, its gradients on a few
(`_probe_gradients`). What fails is cut at a module of its own that mixes its tokens
(`_probe_mixers`), if the same proofs hold; or checkpointed, if that gives what the plain run gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
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
from memo_train.runtime._deepspeed import attending_alone
from memo_train.runtime._head_groups import HeadCut
from memo_train.runtime._leaves import leaves_of
from memo_train.runtime._loss import TiledLoss, probe_loss
from memo_train.runtime._loss_proof import template_of
from memo_train.runtime._mixer import WITHHELD, Mixer, withheld
from memo_train.runtime._module_state import StatePlace, kept_model, kept_state
from memo_train.runtime._parts import ModelParts, needs_whole_blocks
from memo_train.runtime._probe_calls import (
    BlockCall,
    evaluating,
    record_calls,
    record_run,
)
from memo_train.runtime._probe_gradients import NOT_RUNNABLE, TOLERANCE, GradientProbe
from memo_train.runtime._probe_heads import why_heads_meet
from memo_train.runtime._probe_kinds import LEAVES_IN_ARGUMENTS, WatchedBlocks, kinds_of
from memo_train.runtime._probe_mixers import mixers_of
from memo_train.runtime._shadow import installed, shadows_of, trainable_parameters
from memo_train.runtime._sharded import refuse_casts, sharded_in, whole
from memo_train.runtime._swap import CopiesInFlight
from memo_train.runtime._tile import (
    TokenDims,
    holds,
    learn_token_dims,
    split_output,
    tensors_in,
    tile_of,
)


class HowToRun(Enum):
    """By token tiles; checkpointed whole with x swapped; or as it is, with nothing saved."""

    TILED = "tiled"
    CHECKPOINTED = "checkpointed"
    PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class BlockVerdict:
    """How a block may be run, and why not by tiles.

    rest: what it returns besides y, without tensors; None if it returns y alone. hands_on_tensors:
    whether there are tensors besides y. at_cut, token_dims and mixer (where it is cut, if not at
    its attention call) hold for tiles only. changes: the buffers and attributes that its forward
    changes. withholds: whether `WITHHELD` stands for tensors besides y. heads: what was proven of
    its attention's heads; else heads_meet says why they are not run in groups.
    """

    how: HowToRun
    because: str | None = None
    at_cut: AtCut = AtCut.HOLD
    token_dims: TokenDims = field(default_factory=dict)
    rest: tuple[Any, ...] | None = None
    hands_on_tensors: bool = False
    changes: frozenset[StatePlace] = frozenset()
    mixer: Mixer | None = None
    withholds: bool = False
    heads: HeadCut | None = None
    heads_meet: str | None = None

    def returning(self, rest: tuple[Any, ...] | None) -> BlockVerdict:
        """The same for a block that was seen to return `rest` besides y."""
        if self.withholds:
            return replace(self, rest=withheld(rest))
        if all(item is None or isinstance(item, int | float | str) for item in rest or ()):
            return replace(self, rest=rest)
        return replace(self, hands_on_tensors=True)


MORE_TENSORS = "it returns more tensors than its output"

_NUM_TILES = 3
_X_DIMS = 3
_FEW_TOKENS = 10
"""Tokens whose gradients are compared: three tiles, the last one shorter. Reading and writing a
wide block's parameters takes longer than computing on these."""

_OUTPUT_TOLERANCE = {torch.bfloat16: 2e-2}
"""Of an output's largest value: two to five roundings. Gradients are sums of many."""

_FIRST_TOKENS, _LAST_TOKENS = 5, 18
"""Tokens at the start and at the end that must stay finite beside NaN. The last ones begin at 113
of 131, inside of any even window; together they see mixing over 1 to 125 tokens in one run."""


def probe_model(
    parts: ModelParts, device: Device, forward: Callable[..., Any] | None = None
) -> tuple[tuple[BlockVerdict, ...], TiledLoss]:
    """Find out how each block and the loss may be run; the model is left as it was.

    forward: the causal LM's own, where another one stands in its place. Raises: UnsupportedModel
    when a block has cross-attention.
    """
    with attending_alone(parts.causal_lm):
        verdicts, seen = _probe_blocks(parts, device)
        return verdicts, probe_loss(parts, device, forward, seen)


def _probe_blocks(
    parts: ModelParts, device: Device
) -> tuple[tuple[BlockVerdict, ...], tuple[nn.Module, Any] | None]:
    """The verdicts, and the decoder with what it gives if it was seen.

    Of blocks that are alike one is probed.
    """
    watched = WatchedBlocks(parts.blocks)
    few, tokens = min(_FEW_TOKENS, parts.probe_tokens()), parts.probe_tokens()
    kept = kept_model(parts.causal_lm, parts.blocks)
    with kept, evaluating(parts.causal_lm), preserved_rng(device.generators):
        with watched.watching():
            run = record_run(parts, few, device)
            seen = None if run.decoder is None else template_of(run.decoder, run.decoded)
            on_few = run.calls
            del run  # the graphs of all blocks
        # One token apart: the dimension that differs between the calls counts tokens.
        shorter, longer = (_record_idle(parts, watched, n, device) for n in (tokens - 1, tokens))
        kinds = kinds_of(
            parts.blocks,
            [(call.arguments, call.as_is) for call in on_few],
            [watched.operations.get(id(block), frozenset()) for block in parts.blocks],
        )
        verdicts: dict[Hashable, BlockVerdict] = {}
        for index, kind in enumerate(kinds):
            if kind not in verdicts:
                dims = learn_token_dims(shorter[index].arguments, longer[index].arguments)
                calls, block = (on_few[index], longer[index]), parts.blocks[index]
                verdicts[kind] = _probe_whole(block, calls, dims, device)
            if id(parts.blocks[index]) in watched.leave_in_arguments:
                plain = BlockVerdict(how=HowToRun.PLAIN, because=LEAVES_IN_ARGUMENTS)
                verdicts[kind] = plain
        found = [verdicts[k].returning(call.rest) for k, call in zip(kinds, on_few, strict=True)]
        if any(verdict.withholds for verdict in found) and _are_used(parts, watched, found, device):
            found = [_without_withholding(verdict) for verdict in found]
    return tuple(map(_with_router_logits, found) if _wants_router_logits(parts) else found), seen


def _are_used(
    parts: ModelParts, watched: WatchedBlocks, verdicts: list[BlockVerdict], device: Device
) -> bool:
    """Whether the model does not run without the tensors that tiled blocks would withhold."""
    watched.hand_on([verdict.rest if verdict.withholds else None for verdict in verdicts])
    try:
        with watched.idling():
            calls = record_calls(parts, min(_FEW_TOKENS, parts.probe_tokens()), device)
    except (MemoError, *NOT_RUNNABLE):
        return True
    return any(holds(call.arguments, WITHHELD) for call in calls)


def _without_withholding(verdict: BlockVerdict) -> BlockVerdict:
    if not verdict.withholds:
        return verdict
    return BlockVerdict(
        how=HowToRun.CHECKPOINTED,
        because=MORE_TENSORS,
        hands_on_tensors=True,
        changes=verdict.changes,
    )


def _wants_router_logits(parts: ModelParts) -> bool:
    return needs_whole_blocks({}, getattr(parts.causal_lm, "config", None))


def _with_router_logits(verdict: BlockVerdict) -> BlockVerdict:
    """A tile's router logits are of its own tokens; the loss made of them is of all."""
    if verdict.how is not HowToRun.TILED:
        return verdict
    because = "config.output_router_logits asks for the router logits of all tokens"
    return replace(verdict, how=HowToRun.CHECKPOINTED, because=because)


def _record_idle(
    parts: ModelParts, watched: WatchedBlocks, tokens: int, device: Device
) -> list[BlockCall]:
    """The calls of each block, with blocks that do nothing if the model allows it."""
    try:
        with watched.idling():
            return record_calls(parts, tokens, device)
    except (MemoError, *NOT_RUNNABLE):  # it computes with what a block returns besides y
        return record_calls(parts, tokens, device)


def _probe_whole(
    block: nn.Module, calls: tuple[BlockCall, BlockCall], dims: TokenDims, device: Device
) -> BlockVerdict:
    """`_probe_block` where FSDP2 may hold the parameters. Raises: UnsupportedModel."""
    sharded = sharded_in(block)
    refuse_casts([module for module in sharded if module is not block], calls[0].x.dtype)
    with whole(sharded):
        return _probe_block(block, calls, dims, device)


def _probe_block(
    block: nn.Module, calls: tuple[BlockCall, BlockCall], dims: TokenDims, device: Device
) -> BlockVerdict:
    """calls: on a few tokens, whose gradients are compared, and on all that the probe runs."""
    few, many = calls
    how, why = judge_plain_run(block, few)
    if how is HowToRun.PLAIN:
        return BlockVerdict(how=how, because=why)
    spec = _spec_of(block, dims, device)
    try:
        gradients = GradientProbe(few, replace(spec, tile_tokens=_tile_tokens(few)))
    except (MemoError, *NOT_RUNNABLE) as error:
        why = why or f"its gradients cannot be taken twice ({error})"
        return BlockVerdict(how=HowToRun.CHECKPOINTED, because=why)
    if how is HowToRun.TILED or why is MORE_TENSORS:
        probe = _TileProbe(block, many, replace(spec, tile_tokens=_tile_tokens(many)))
        tiled = partial(_tiled_verdict, dims=dims, gradients=gradients)
        if how is HowToRun.TILED:
            why, at_cut = _why_not_tiled(probe, gradients)
            if why is None:
                heads, meet = _heads_of(probe, gradients, at_cut)
                return replace(tiled(probe, at_cut), heads=heads, heads_meet=meet)
        for mixer in [] if gradients.own_loss else probe.mixers():
            cut_probe = probe.cut_at(mixer)
            why_not, at_cut = _why_not_tiled(cut_probe, gradients.cut_at(mixer))
            if why_not is None:
                return tiled(cut_probe, at_cut)
    even_so = gradients.why_not_checkpointed()
    if even_so is not None:
        return BlockVerdict(how=HowToRun.PLAIN, because=f"{why}; checkpointed, {even_so}")
    return BlockVerdict(how=HowToRun.CHECKPOINTED, because=why, changes=gradients.changes)


def _tiled_verdict(
    probe: _TileProbe, at_cut: AtCut, *, dims: TokenDims, gradients: GradientProbe
) -> BlockVerdict:
    return BlockVerdict(
        how=HowToRun.TILED,
        at_cut=at_cut,
        token_dims=dims,
        changes=gradients.changes,
        mixer=probe.mixer,
        withholds=probe.withholds,
    )


def _why_not_tiled(probe: _TileProbe, gradients: GradientProbe) -> tuple[str | None, AtCut]:
    """Why a block is not tiled; or None, and what its frames may be left with at the cut."""
    why = gradients.own_loss or probe.why_not_token_wise()
    if why is not None:
        return why, AtCut.HOLD
    # Poison shows whether anything reads them later; if so, they are held.
    for at_cut, proven in ((AtCut.POISON, AtCut.RELEASE), (AtCut.HOLD, AtCut.HOLD)):
        why = probe.difference(at_cut) or gradients.why_not_tiled(at_cut)
        if why is None:
            return None, proven
    return why, AtCut.HOLD


def _heads_of(
    probe: _TileProbe, gradients: GradientProbe, at_cut: AtCut
) -> tuple[HeadCut | None, str | None]:
    """What was proven of a tiled block's heads; or None, and why attention runs whole."""
    heads, why = probe.heads()
    if heads is not None:
        why = gradients.why_not_grouped(heads, at_cut)
    return (heads, None) if why is None else (None, why)


def _tile_tokens(call: BlockCall) -> int:
    return math.ceil(call.x.shape[1] / _NUM_TILES)


def _spec_of(block: nn.Module, dims: TokenDims, device: Device) -> BlockSpec:
    return BlockSpec(
        module=block,
        forward=block.forward,
        policy=BlockPolicy(
            keep_tiles=0, swap_tiles=0, recompute_tiles=_NUM_TILES, x=Place.KEEP, o=Place.KEEP
        ),
        tile_tokens=1,
        device=device,
        # No plan has left bytes for copies: each is waited for at once.
        in_flight=CopiesInFlight(0),
        at_cut=AtCut.HOLD,
        token_dims=dims,
    )


def judge_plain_run(block: nn.Module, call: BlockCall) -> tuple[HowToRun, str | None]:
    """Run the block once with a graph and look at what it did to its input and outputs.

    Gives TILED if nothing speaks against it yet; else the other way to run it, and why.
    """
    if call.as_is is not None:
        return HowToRun.PLAIN, call.as_is
    parameters = trainable_parameters(block)
    shadows = shadows_of(parameters)
    x = call.x.clone().requires_grad_()
    own = {id(leaf) for leaf in (x, *shadows)}
    given = list(tensors_in(call.arguments))
    with torch.enable_grad(), kept_state(block), installed(block, parameters, shadows):
        seen = x.clone()  # no leaf, as in a model, so that writing to it is allowed
        version = seen._version
        y, rest = split_output(block.forward(seen, *call.args, **call.kwargs))
    if seen._version != version:
        return HowToRun.PLAIN, "it writes to its input"
    if x.dim() < _X_DIMS or (x.dim() > _X_DIMS and x.shape[1] != call.num_ids):
        return HowToRun.CHECKPOINTED, "its input is not [batch, tokens, hidden]"
    left = list(tensors_in(call.arguments))
    if [id(tensor) for tensor in left] != [id(tensor) for tensor in given]:
        return HowToRun.PLAIN, LEAVES_IN_ARGUMENTS
    if any(isinstance(output, torch.Tensor) for output in rest or ()):
        return HowToRun.CHECKPOINTED, MORE_TENSORS
    if any(id(leaf) not in own for leaf in leaves_of([y.grad_fn])):
        return (
            HowToRun.CHECKPOINTED,
            "it differentiates tensors that are neither its input nor its own parameters",
        )
    return HowToRun.TILED, None


class _TileProbe:
    """Runs one block by tiles on its recorded call, without gradients."""

    def __init__(self, block: nn.Module, call: BlockCall, spec: BlockSpec) -> None:
        self._block, self._call, self._spec = block, call, spec
        self._tokens = call.x.shape[1]
        self.withholds = False

    @property
    def mixer(self) -> Mixer | None:
        """Where it cuts the block, if not at its attention call."""
        return self._spec.mixer

    def cut_at(self, mixer: Mixer) -> _TileProbe:
        """The same with the block cut at `mixer`."""
        return _TileProbe(self._block, self._call, replace(self._spec, mixer=mixer))

    def mixers(self) -> list[Mixer]:
        """The modules at which the block may be cut, if it is so there."""
        training, spans = self._block.training, self._spans()[-1]
        x = _only(self._call.x, spans, 1)
        try:
            with torch.no_grad(), kept_state(self._block):
                self._block.train()
                return mixers_of(self._block, self._call, x, spans)
        except (MemoError, *NOT_RUNNABLE):
            return []
        finally:
            self._block.train(training)

    def why_not_token_wise(self) -> str | None:
        """Whether NaN in the other tokens reaches some of the first or last, in training mode."""
        training = self._block.training
        try:
            # As steps will run it.
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                stack.enter_context(kept_state(self._block))
                stack.enter_context(intercept())
                if self._spec.mixer is not None:
                    stack.enter_context(self._spec.cut_at_mixer())
                self._block.train()
                untouched = all(self._are_untouched(spans) for spans in self._spans())
        except (MemoError, *NOT_RUNNABLE) as error:
            return str(error)
        finally:
            self._block.train(training)
        return None if untouched else "its tokens mix outside attention"

    def _spans(self) -> list[list[range]]:
        """The tokens that stay finite in each run."""
        tokens, size = self._tokens, self._spec.tile_tokens
        # With fewer, too little NaN would stand between the spans: one run for each.
        if tokens > 2 * (_FIRST_TOKENS + _LAST_TOKENS):
            return [[range(_FIRST_TOKENS), range(tokens - _LAST_TOKENS, tokens)]]
        return [[range(size)], [range(tokens - size, tokens)]]

    def difference(self, at_cut: AtCut) -> str | None:
        """Why the tiled run differs from the whole one, or None if it does not."""
        call, spec = self._call, replace(self._spec, at_cut=at_cut)
        try:
            with torch.no_grad(), kept_state(self._block):
                y, _ = split_output(self._block.forward(call.x, *call.args, **call.kwargs))
                block_pass = BlockPass(spec, (), call.args, call.kwargs, record=False)
                tiled = block_pass.forward(call.x, x_needs_grad=False)
            rest = block_pass.rest or ()
            if any(isinstance(item, torch.Tensor) for item in rest):
                return MORE_TENSORS
            self.withholds = any(item is WITHHELD for item in rest)
        except (MemoError, *NOT_RUNNABLE) as error:
            return f"it does not run on a part of the tokens ({error})"
        worst = float((tiled - y).abs().max()) / max(float(y.abs().max()), 1e-30)
        if worst <= _OUTPUT_TOLERANCE.get(y.dtype, TOLERANCE.get(y.dtype, 1e-4)):
            return None
        return f"its tiled and whole runs differ by {worst:.2g} of its output"

    def heads(self) -> tuple[HeadCut | None, str | None]:
        """How the heads of the block's attention may be run in groups; or None, and why not."""
        call, training = self._call, self._block.training
        frame = Frame(self._block.forward, call.x.device.type)
        try:
            with torch.no_grad(), kept_state(self._block), intercept():
                self._block.train()
                cut = frame.run_to_cut((call.x, *call.args), call.kwargs)
                heads = HeadCut.of(cut)
                if heads is None:
                    return None, "its attention has no key-value heads that could be told apart"
                why = why_heads_meet(cut, heads, self._spec.device.generators)
        except (MemoError, *NOT_RUNNABLE) as error:
            return None, f"its attention does not run on a part of the heads ({error})"
        finally:
            frame.close()
            self._block.train(training)
        return (heads, None) if why is None else (None, why)

    def _are_untouched(self, spans: Sequence[range]) -> bool:
        frame = Frame(self._block.forward, self._call.x.device.type)
        try:
            cut = frame.run_to_cut(
                (_only(self._call.x, spans, 1), *self._call.args), self._call.kwargs
            )
            qkv, form = cut.tensors, cut.form
            before = all(_is_finite(t, spans, form.token_dim) for t in qkv)
            # Zeros: attention itself must not carry NaN over.
            o = cut.call(*(torch.zeros_like(t) for t in qkv), **cut.options)
            y, _ = split_output(frame.resume(_only(o, spans, form.o_token_dim)))
        finally:
            frame.close()
        return before and _is_finite(y, spans, 1)


def _is_finite(tensor: torch.Tensor, spans: Sequence[range], dim: int) -> bool:
    return all(bool(tile_of(tensor, span, dim).isfinite().all()) for span in spans)


def _only(tensor: torch.Tensor, spans: Sequence[range], dim: int) -> torch.Tensor:
    """A copy of `tensor` with NaN in all tokens outside `spans`."""
    kept = torch.full_like(tensor, math.nan)
    for span in spans:
        tile_of(kept, span, dim).copy_(tile_of(tensor, span, dim))
    return kept
