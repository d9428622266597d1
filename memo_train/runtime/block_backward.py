"""Backward of one block: post tile by tile, attention once, pre tile by tile.

A tile that was recorded in forward (keep, swap) goes straight to its backward; one that was not
(recompute) first runs its pre and post again, on the saved x and o. Attention never runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch

from memo_train.runtime.attend import QKV_TOKEN_DIM, Gathered
from memo_train.runtime.block_state import BlockState, TileRecord
from memo_train.runtime.observe import NOWHERE
from memo_train.runtime.rng import preserved_rng, set_rng
from memo_train.runtime.saved import SavedTensors
from memo_train.runtime.shadow import GradientSum
from memo_train.runtime.tile import TileGraph, TileRun
from memo_train.runtime.tiles import TokenArguments, tile_of


class BlockBackward:
    """Runs one backward out of `state`.

    x: the block's input again. prefetch_previous: starts the copies back for the block whose
    backward comes next, up to so many bytes: what the plan left free while attention's backward
    runs, and then also what that has freed.
    """

    def __init__(
        self, state: BlockState, x: torch.Tensor, prefetch_previous: Callable[[int], None]
    ) -> None:
        self._state = state
        self._x = x
        self._prefetch_previous = prefetch_previous
        self._arguments: TokenArguments = state.arguments(x.shape[1])
        self._sums = GradientSum(state.parameters)
        self._dx = torch.empty_like(x) if state.x_needs_grad else None

    def run(
        self, o: torch.Tensor, dy: torch.Tensor
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """o: attention output; dy: [batch, tokens, hidden] -> (dx or None, parameter gradients)."""
        state, attention = self._state, self._state.attention
        state.attention = None
        assert attention is not None
        gathered = Gathered(self._x.shape[1], attention.ambient)
        with ExitStack() as stack:
            stack.enter_context(preserved_rng(state.spec.device.generators))
            state.enter(stack)
            # Copies queue: asked for later, it would wait for all that the block before fetches.
            attention.saved.prefetch()
            do = self._all_post(o, dy, attention.o_token_dim, gathered)
            state.spec.observe("attention_backward")
            self._prefetch_previous(state.spec.ahead_bytes)
            dqkv, gradients = attention.backward(gathered.take(), o, do, state.shadows)
            self._sums.add(gradients)
            freed_bytes = state.qkv_bytes + o.nbytes
            del o, do, attention
            state.spec.observe("pre_backward")
            self._prefetch_previous(state.spec.ahead_bytes + freed_bytes)
            self._all_pre(dqkv)
        state.spec.observer("between", NOWHERE, NOWHERE)
        return self._dx, self._sums.take()

    def _all_post(
        self, o: torch.Tensor, dy: torch.Tensor, o_token_dim: int, gathered: Gathered
    ) -> torch.Tensor:
        """Post of every tile: do of all tokens, part of dx; q, k and v go to `gathered`."""
        do = torch.empty_like(o)
        tiles = self._state.tiles
        self._prefetch_tile(tiles[-1])
        for index, tile in reversed(list(enumerate(tiles))):
            self._state.spec.observe("post_backward", index)
            self._prefetch_tile(tiles[index - 1] if index else None)
            o_tile = tile_of(o, tile.span, o_token_dim)
            gathered.put(self._qkv(tile, o, o_tile), tile.span)
            assert tile.graph is not None
            gradients = tile.graph.post_backward(tile_of(dy, tile.span), self._state.shadows)
            tile.post_saved = SavedTensors()
            self._sums.add(gradients[2:])
            _write(tile_of(do, tile.span, o_token_dim), gradients[1])
            if self._dx is not None:
                _write(tile_of(self._dx, tile.span), gradients[0])
        return do

    def _prefetch_tile(self, tile: TileRecord | None) -> None:
        """Start the copies back of the tile whose turn is next, if the plan left room for it."""
        spec = self._state.spec
        if tile is not None and tile.swapped_bytes <= spec.ahead_bytes:
            tile.prefetch()
            if not spec.park_pre:
                tile.pre_saved.prefetch()

    def _qkv(
        self, tile: TileRecord, o: torch.Tensor, o_tile: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The tile's q, k and v, with its graph in place."""
        if tile.is_recorded:
            tile.pre_saved.bind(x=self._x)
            tile.post_saved.bind(x=self._x, o=o)
            return tile.take_qkv()
        state = self._state
        run = TileRun(state.spec.forward, tile.span, o_tile.device.type)
        generators = state.spec.device.generators
        set_rng(generators, tile.pre_rng)
        x_tile = state.leaf(self._x, tile.span)
        saved = tile.pre_saved if state.spec.park_pre else None
        cut = run.pre(x_tile, self._arguments.tile(tile.span), record=True, saved=saved)
        if saved is not None:
            state.settle(saved, {"x": self._x}, self._arguments, swap=True)
            saved.bind(x=self._x)
        set_rng(generators, tile.post_rng)
        run.post(o_tile, record=True)
        tile.graph = run.graph
        return cut.q, cut.k, cut.v

    def _all_pre(self, dqkv: tuple[torch.Tensor, ...]) -> None:
        tiles = self._state.tiles
        for index, tile in reversed(list(enumerate(tiles))):
            self._state.spec.observe("pre_backward", index)
            if index:
                tiles[index - 1].pre_saved.prefetch()
            graph, tile.graph = tile.graph, None
            assert graph is not None
            self._pre(tile, graph, tuple(tile_of(d, tile.span, QKV_TOKEN_DIM) for d in dqkv))

    def _pre(self, tile: TileRecord, graph: TileGraph, dqkv: tuple[torch.Tensor, ...]) -> None:
        dx, *gradients = graph.pre_backward(dqkv, self._state.shadows)
        tile.pre_saved = SavedTensors()
        self._sums.add(gradients)
        if self._dx is not None and dx is not None:
            tile_of(self._dx, tile.span).add_(dx)


def _write(place: torch.Tensor, value: torch.Tensor | None) -> None:
    if value is None:
        place.zero_()
    else:
        place.copy_(value)
