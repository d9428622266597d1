"""Forward of one block: pre of every tile, attention once, post of every tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from memo_planner.policy import Place, TilePlace
from memo_train.errors import InPlaceModified
from memo_train.runtime.attend import AttentionRun, Gathered
from memo_train.runtime.block_state import AtCut, BlockState, TileRecord
from memo_train.runtime.observe import NOWHERE
from memo_train.runtime.rng import RngStates
from memo_train.runtime.saved import storage_key
from memo_train.runtime.swap import WholeTensor
from memo_train.runtime.tile import TileRun, release_data
from memo_train.runtime.tiles import TokenArguments, tile_of, tile_spans


class BlockForward:
    """Runs one forward into `state`; `rest` are the block's outputs besides y, or None."""

    def __init__(self, state: BlockState) -> None:
        self.rest: tuple[Any, ...] | None = None
        self._state = state
        self._runs: list[TileRun] = []
        self._rng = RngStates(state.spec.device.generators)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens, hidden] -> y, the same shape, without a graph."""
        state, spec, version = self._state, self._state.spec, _version(x)
        spans = tile_spans(x.shape[1], spec.tile_tokens)
        state.tiles = [TileRecord(span, self._place(i)) for i, span in enumerate(spans)]
        self._runs = [TileRun(spec.forward, span, x.device.type) for span in spans]
        arguments = state.arguments(x.shape[1])
        with ExitStack() as stack:
            state.enter(stack)
            for run in self._runs:
                stack.callback(run.close)
            o = self._attend(self._all_pre(x, arguments))
            y = self._all_post(x, o, arguments)
        if _version(x) != version:
            raise InPlaceModified(
                f"the block modified its input {tuple(x.shape)} in place; it cannot be tiled"
            )
        if state.record:
            state.x = WholeTensor(x, *spec.swap_target, swap=spec.policy.x is Place.SWAP)
        spec.observer("between", NOWHERE, NOWHERE)
        return y

    def _place(self, tile: int) -> TilePlace:
        """Where a tile's saved tensors go; nothing is saved unless a backward may follow."""
        state = self._state
        return state.spec.policy.tile_place(tile) if state.record else TilePlace.RECOMPUTE

    def _all_pre(self, x: torch.Tensor, arguments: TokenArguments) -> tuple[torch.Tensor, ...]:
        state = self._state
        gathered: Gathered | None = None
        for index, (tile, run) in enumerate(zip(state.tiles, self._runs, strict=True)):
            state.spec.observe("pre", index)
            tile.pre_rng = self._rng.take()
            x_tile = state.leaf(x, tile.span) if tile.is_recorded else tile_of(x, tile.span)
            cut = run.pre(x_tile, arguments.tile(tile.span), tile.is_recorded, tile.pre_saved)
            if gathered is None:
                gathered = Gathered(x.shape[1], cut.ambient)
                state.attention = AttentionRun(cut, arguments.whole(cut.options))
            qkv = (cut.q, cut.k, cut.v)
            gathered.put(qkv, tile.span)
            if tile.is_recorded:
                tile.graph = run.graph
                tile.qkv = [tile.qkv_saved.save(t) for t in qkv]
                swap = tile.place is TilePlace.SWAP
                state.settle(tile.qkv_saved, {}, arguments, swap=swap)
                state.settle(tile.pre_saved, {"x": x}, arguments, swap=swap)
            elif len(self._runs) > 1:
                _leave_at_cut(state.spec.at_cut, qkv, kept=(x, *state.shadows))
        assert gathered is not None
        return gathered.take()

    def _attend(self, qkv: tuple[torch.Tensor, ...]) -> torch.Tensor:
        state, spec = self._state, self._state.spec
        assert state.attention is not None
        spec.observe("attention")
        state.qkv_bytes = sum(t.nbytes for t in qkv)
        swap = spec.policy.o is Place.SWAP
        target = spec.swap_target if swap else None
        o = state.attention.forward(qkv, record=state.record, swap=target)
        if state.record:
            state.o = WholeTensor(o, *spec.swap_target, swap=swap)
        return o

    def _all_post(
        self, x: torch.Tensor, o: torch.Tensor, arguments: TokenArguments
    ) -> torch.Tensor:
        state = self._state
        assert state.attention is not None
        y: torch.Tensor | None = None
        for index, (tile, run) in enumerate(zip(state.tiles, self._runs, strict=True)):
            state.spec.observe("post", index)
            tile.post_rng = self._rng.take()
            o_tile = tile_of(o, tile.span, state.attention.o_token_dim)
            y_tile, self.rest = run.post(o_tile, tile.is_recorded, tile.post_saved)
            if tile.is_recorded:
                swap = tile.place is TilePlace.SWAP
                state.settle(tile.post_saved, {"x": x, "o": o}, arguments, swap=swap)
                _release_leaves(tile)
            if len(self._runs) == 1:
                return y_tile
            if y is None:
                y = torch.empty(x.shape, dtype=y_tile.dtype, device=x.device)
            tile_of(y, tile.span).copy_(y_tile)
        assert y is not None
        return y


def _version(tensor: torch.Tensor) -> int:
    """Counts writes to a tensor; inference tensors do not count theirs."""
    return 0 if tensor.is_inference() else tensor._version


def _release_leaves(tile: TileRecord) -> None:
    """x and o live on in the block's state, so the tile's graph need not hold them."""
    assert tile.graph is not None
    for leaf in (tile.graph.x, tile.graph.o):
        assert leaf is not None
        release_data(leaf)


def _leave_at_cut(
    at_cut: AtCut, tensors: Sequence[torch.Tensor], kept: Sequence[torch.Tensor]
) -> None:
    """Free (or poison) tensors that nothing should read any more, though suspended frames do name
    them."""
    untouchable = {storage_key(tensor) for tensor in kept}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if at_cut is AtCut.HOLD or not storage.nbytes() or storage_key(tensor) in untouchable:
            continue
        if at_cut is AtCut.RELEASE:
            storage.resize_(0)
        else:
            whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            elements = storage.nbytes() // tensor.element_size()
            whole.set_(storage, 0, (elements,), (1,)).fill_(math.nan)
