"""One pass of a token-tiled block: a forward and, once, its backward, as one autograd function.

Forward runs pre of every tile, attention once, post of every tile. Backward runs post tile by tile,
attention once, pre tile by tile. A tile that was recorded in forward (keep, swap) goes straight to
its backward; one that was not (recompute) first runs its pre and post again, on the saved x and o.
Attention runs again only where o is not saved. Being one function, the block fires parameter hooks
once a step.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from memo_planner.policy import Place, TilePlace
from memo_train.errors import BackwardTwice, InPlaceModified
from memo_train.runtime._ambient import (
    Ambient,
    RngStates,
    differentiable_once,
    preserved_rng,
    set_rng,
)
from memo_train.runtime._attend import AttentionRun, Gathered
from memo_train.runtime._block_state import AtCut, BlockSpec, BlockState, SavedBytes, TileRecord
from memo_train.runtime._head_groups import GatheredPlanes, GroupedAttention
from memo_train.runtime._leaves import refuse_lost_gradients
from memo_train.runtime._module_state import kept_state
from memo_train.runtime._observe import NOWHERE
from memo_train.runtime._planes import HostInput, InputGradient, Output, Planes, TilesOf
from memo_train.runtime._saved import SavedTensors, storage_key, storage_keys
from memo_train.runtime._shadow import (
    GradientSum,
    shadows_of,
    take_written_gradients,
)
from memo_train.runtime._swap import WholeTensor, is_plain, version_of
from memo_train.runtime._tile import (
    TileRun,
    TokenArguments,
    release_data,
    tile_spans,
    tiles_of,
)


class BlockForward:
    """Runs one forward into `state`; `rest` are the block's outputs besides y, or None."""

    def __init__(self, state: BlockState) -> None:
        self.rest: tuple[Any, ...] | None = None
        self._state = state
        self._runs: list[TileRun] = []
        self._rng = RngStates(state.spec.device.generators)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens, hidden] -> y, the same shape, without a graph."""
        state, spec, version = self._state, self._state.spec, version_of(x)
        spans = tile_spans(x.shape[1], spec.tile_tokens)
        state.tiles = [TileRecord(span, self._place(i)) for i, span in enumerate(spans)]
        self._runs = [TileRun(spec.forward, span, x.device.type) for span in spans]
        arguments = state.arguments(x.shape[1])
        with ExitStack() as stack:
            state.enter(stack)
            # Also after an error: a suspended frame holds its tile's tensors.
            for run in self._runs:
                stack.callback(run.close)
            o = self._attend(x, self._all_pre(x, arguments))
            y = self._all_post(x, o, arguments)
        if version_of(x) != version:
            raise InPlaceModified(
                f"the block modified its input {tuple(x.shape)} in place; it cannot be tiled"
            )
        if state.record:
            state.keep_input(x)
        spec.observer("between", NOWHERE, NOWHERE)
        return y

    def _place(self, tile: int) -> TilePlace:
        """Where a tile's saved tensors go; nothing is saved unless a backward may follow."""
        state = self._state
        return state.spec.policy.tile_place(tile) if state.record else TilePlace.RECOMPUTE

    def _all_pre(self, x: torch.Tensor, arguments: TokenArguments) -> Gathered | GatheredPlanes:
        """q, k and v of all tokens."""
        state = self._state
        gathered: Gathered | GatheredPlanes | None = None
        untouchable = storage_keys((x, *state.shadows))
        x_tiles, recorded = tiles_of(x, state.spec.tile_tokens), state.input_tiles(x)
        for index, (tile, run) in enumerate(zip(state.tiles, self._runs, strict=True)):
            state.spec.observe("pre", index)
            if tile.is_recorded:
                x_tile = state.leaf(recorded.tile(index))
                known = {"x": recorded.memory_of(x_tile)}
            else:
                x_tile = x_tiles[index]
                tile.pre_rng = self._rng.take()
            cut = run.pre(x_tile, arguments.tile(tile.span), tile.is_recorded, tile.pre_saved)
            if gathered is None:
                gathered = state.gathering(x.shape[1], cut.form)
                state.attention = state.attention_of(cut, arguments.whole(cut.options))
            qkv = cut.tensors
            gathered.put(qkv, tile.span)
            if tile.is_recorded:
                tile.graph = run.graph
                # Apart from what else pre saved, which comes back only behind attention.
                tile.qkv = [tile.qkv_saved.save(t) for t in qkv]
                swap = tile.place is TilePlace.SWAP
                state.settle(tile.qkv_saved, {}, arguments, swap=swap)
                state.settle(tile.pre_saved, known, arguments, swap=swap)
            elif gathered.holds_copies:
                state.poisoned += _leave_at_cut(state.spec.at_cut, qkv, untouchable)
        assert gathered is not None
        return gathered

    def _attend(
        self, x: torch.Tensor, gathered: Gathered | GatheredPlanes
    ) -> torch.Tensor | Planes:
        state, spec, attention = self._state, self._state.spec, self._state.attention
        assert attention is not None
        # Where ranks share attention, q, k and v cross now.
        spec.observe("attention")
        state.qkv_bytes = gathered.num_bytes
        swap = spec.policy.o is Place.SWAP
        # Planes of o wait on the host even where they are let go of behind post.
        out = swap or (state.is_again and spec.num_groups > 1)
        target = spec.swap_target if out else None
        if state.is_again:
            state.attention_rng = self._rng.take()
        # A kept x is in the plan's bytes all along.
        with state.parked(attention, *([x] if spec.policy.x is Place.SWAP else [])):
            o: torch.Tensor | Planes = attention.forward(
                gathered.take(),  # type: ignore[arg-type]  # of one kind with the attention
                record=state.record,
                swap=target,
            )
        if state.is_again:
            # Recorded even so: kernels may be others where nothing is differentiated.
            state.attention = attention.anew()
        elif state.record:
            state.o = o if isinstance(o, Planes) else WholeTensor(o, *spec.swap_target, swap=swap)
        return o

    def _all_post(
        self, x: torch.Tensor, o: torch.Tensor | Planes, arguments: TokenArguments
    ) -> torch.Tensor:
        state = self._state
        assert state.attention is not None
        tile_tokens = state.spec.tile_tokens
        y = Output(x.shape, tile_tokens, state.planes_target)
        o_tiles = TilesOf(o, tile_tokens, state.attention.form.o_token_dim)
        for index, (tile, run) in enumerate(zip(state.tiles, self._runs, strict=True)):
            state.spec.observe("post", index)
            if not tile.is_recorded:
                tile.post_rng = self._rng.take()
            o_tile = o_tiles.tile(index)
            y_tile, self.rest = run.post(o_tile, tile.is_recorded, tile.post_saved)
            if tile.is_recorded:
                swap = tile.place is TilePlace.SWAP
                assert tile.graph is not None
                # By groups of heads a recorded tile of x is apart, and its graph's leaf.
                whole = state.spec.num_groups == 1
                known_x = x if whole else tile.graph.x
                known = {"x": known_x, "o": o_tiles.memory_of(o_tile)}
                state.settle(tile.post_saved, known, arguments, swap=swap)
                _release_leaves(tile)
            y.write(index, y_tile)
            # Else they would be there beside the next tile's, or beside y.
            del o_tile, y_tile
        return y.take()


def _release_leaves(tile: TileRecord) -> None:
    """x and o live on in the block's state, so the tile's graph need not hold them."""
    assert tile.graph is not None
    for leaf in (tile.graph.x, tile.graph.o):
        assert leaf is not None
        release_data(leaf)


def _leave_at_cut(
    at_cut: AtCut, tensors: Sequence[torch.Tensor], untouchable: frozenset[int]
) -> list[StorageWeakRef]:
    """Free (or poison) tensors that nothing should read any more, though suspended frames do name
    them, but for `untouchable` storages. Returns those poisoned: once the frames have ended, nobody
    holds them."""
    poisoned: list[StorageWeakRef] = []
    for tensor in filter(is_plain, tensors):
        storage = tensor.untyped_storage()
        if at_cut is AtCut.HOLD or not storage.nbytes() or storage_key(tensor) in untouchable:
            continue
        if at_cut is AtCut.RELEASE:
            # Not `del`: the suspended frame still names the tensors.
            storage.resize_(0)
        else:
            # All of the storage: q, k and v may be views of one projection's output.
            whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            elements = storage.nbytes() // tensor.element_size()
            whole.set_(storage, 0, (elements,), (1,)).fill_(math.nan)
            held = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            poisoned.append(held)
    return poisoned


class BlockBackward:
    """Runs one backward out of `state`.

    x: the block's input again. prefetch_previous: starts the copies back for the block whose
    backward comes next, up to so many bytes: what the plan left free while attention's backward
    runs, and then also what that has freed.
    """

    def __init__(
        self,
        state: BlockState,
        x: torch.Tensor | HostInput,
        prefetch_previous: Callable[[int], None],
    ) -> None:
        self._state, spec = state, state.spec
        self._shape = x.shape
        self._prefetch_previous = prefetch_previous
        self._arguments: TokenArguments = state.arguments(x.shape[1])
        self._sums = GradientSum(state.parameters)
        self._x_tiles = state.input_tiles(x)
        target, tile_tokens = state.planes_target, spec.tile_tokens
        self._dx = InputGradient(x, tile_tokens, target) if state.x_needs_grad else None

    def run(
        self, given: list[Any], dy: torch.Tensor
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """dy: [batch, tokens, hidden] -> (dx or None, parameter gradients).

        given: the attention output, which is taken: attention lets go of it where ranks share it.
        None: it is made again.
        """
        state, attention, o = self._state, self._state.attention, given.pop()
        # Taken out of the state, so that the `del` below frees what attention saved.
        state.attention = None
        assert attention is not None
        form, gathered = attention.form, state.gathering(self._shape[1], attention.form)
        with ExitStack() as stack:
            stack.enter_context(preserved_rng(state.spec.device.generators))
            state.enter(stack)
            # Copies queue: asked for later, it would wait for all that the block before fetches.
            attention.prefetch()
            qkv: list[Any] = []  # where attention runs again; else they are gathered by post
            if o is None:
                qkv.append(self._qkv_again(gathered))
                with state.parked(attention, dy):
                    o = self._o_again(attention, qkv[0])
            do = self._all_post(o, dy, form.o_token_dim, None if qkv else gathered)
            self._check(attention.roots, attention.leaves)
            state.spec.checked_shapes.add(tuple(self._shape[:2]))
            state.spec.observe("attention_backward")
            self._prefetch_previous(state.spec.ahead_bytes)
            freed_bytes = state.qkv_bytes + o.nbytes if isinstance(o, torch.Tensor) else 0
            wholes = [o, do]
            del o, do
            if not qkv:
                qkv.append(gathered.take())
            # Popped: attention lets go of them where ranks share it.
            with state.parked(attention, dy):
                dqkv, gradients = attention.backward(qkv.pop(), wholes, state.shadows)
            self._add(gradients)
            # Pre's backward, and copies for the block before, run in the memory that these leave.
            del attention
            state.spec.observe("pre_backward")
            self._prefetch_previous(state.spec.ahead_bytes + freed_bytes)
            tile_tokens = state.spec.tile_tokens
            self._all_pre([TilesOf(d, tile_tokens, form.token_dim) for d in dqkv])
        state.spec.observer("between", NOWHERE, NOWHERE)
        return None if self._dx is None else self._dx.take(), self._sums.take()

    def _qkv_again(self, gathered: Gathered | GatheredPlanes) -> Any:
        """q, k and v of all tokens: saved ones, and those of tiles of which pre runs once more."""
        state = self._state
        generators, module = state.spec.device.generators, state.spec.module
        for index, tile in reversed(list(enumerate(state.tiles))):
            state.spec.observe("post_backward", index)
            if tile.is_recorded:
                gathered.put(tile.take_qkv(), tile.span)
                continue
            x_tile = self._x_tiles.tile(index)
            run = TileRun(state.spec.forward, tile.span, x_tile.device.type)
            set_rng(generators, tile.pre_rng)
            with kept_state(module, state.spec.changes):
                cut = run.pre(x_tile, self._arguments.tile(tile.span), record=False)
                gathered.put(cut.tensors, tile.span)
                run.close()
        return gathered.take()

    def _o_again(
        self, attention: AttentionRun | GroupedAttention, qkv: Any
    ) -> torch.Tensor | Planes:
        """Attention's output, as forward gave it, with what attention's backward needs."""
        spec = self._state.spec
        set_rng(spec.device.generators, self._state.attention_rng)
        return attention.forward(qkv, record=True, swap=self._state.planes_target)

    def _all_post(
        self,
        o: torch.Tensor | Planes,
        dy: torch.Tensor,
        o_token_dim: int,
        gathered: Gathered | GatheredPlanes | None,
    ) -> torch.Tensor | Planes:
        """Post of every tile: do of all tokens, part of dx; q, k and v go to `gathered`."""
        spec, tiles = self._state.spec, self._state.tiles
        tile_tokens = spec.tile_tokens
        do = torch.empty_like(o) if isinstance(o, torch.Tensor) else o.like(spec.swap_target)
        o_tiles, do_tiles = (TilesOf(t, tile_tokens, o_token_dim) for t in (o, do))
        dy_tiles = tiles_of(dy, tile_tokens)
        self._prefetch_tile(tiles[-1])
        # From the last: kept tiles are last, so swapped ones have longest to come back.
        for index, tile in reversed(list(enumerate(tiles))):
            spec.observe("post_backward", index)
            self._prefetch_tile(tiles[index - 1] if index else None)
            qkv_tile = self._qkv(index, o_tiles)
            if gathered is not None:
                gathered.put(qkv_tile, tile.span)
            del qkv_tile
            assert tile.graph is not None
            # One tile is enough, and this one's graph is still whole: tiles' graphs are alike.
            if index == len(tiles) - 1:
                self._check(tile.graph.roots, (tile.graph.x, tile.graph.o))
            gradients = tile.graph.post_backward(dy_tiles[index], self._state.shadows)
            tile.post_saved = SavedTensors()
            self._add(gradients[2:])
            do_tiles.write(index, gradients[1])
            if self._dx is not None:
                self._dx.write(index, gradients[0])
            self._leave_input(tile)
            del gradients  # as many bytes as the parameters: not beside those of the next tile
        return do

    def _leave_input(self, tile: TileRecord) -> None:
        """By groups of heads: let go of a tile of x until pre's backward."""
        if self._state.spec.num_groups > 1:
            assert tile.graph is not None
            tile.pre_saved.unbind()
            release_data(tile.graph.x)

    def _check(self, roots: Iterable[Any], leaves: Iterable[torch.Tensor | None]) -> None:
        """At the first backward of a shape: no gradient is lost. Raises: LostGradient."""
        state = self._state
        if tuple(self._shape[:2]) in state.spec.checked_shapes:
            return
        inputs = [*state.shadows, *(leaf for leaf in leaves if leaf is not None)]
        refuse_lost_gradients(state.spec.module, roots, state.parameters, inputs)

    def _prefetch_tile(self, tile: TileRecord | None) -> None:
        """Start the copies back of the tile whose turn is next, if the plan left room for it."""
        spec = self._state.spec
        if tile is not None and tile.swapped_bytes <= spec.ahead_bytes:
            tile.prefetch()
            if not spec.park_pre:
                tile.pre_saved.prefetch()

    def _qkv(self, index: int, o_tiles: TilesOf) -> tuple[torch.Tensor, ...]:
        """The q, k and v of tile number `index`, with its graph in place."""
        tile, o_tile = self._state.tiles[index], o_tiles.tile(index)
        state, x_tile = self._state, self._x_tiles.tile(index)
        x_memory = self._x_tiles.memory_of(x_tile)
        if tile.is_recorded:
            tile.pre_saved.bind(x=x_memory)
            tile.post_saved.bind(x=x_memory, o=o_tiles.memory_of(o_tile))
            return tile.take_qkv()
        run = TileRun(state.spec.forward, tile.span, o_tile.device.type)
        generators = state.spec.device.generators
        # Forward's random numbers again, so that dropout drops the same.
        set_rng(generators, tile.pre_rng)
        x_tile, park = state.leaf(x_tile), state.spec.park_pre
        # By groups of heads x is let go of until pre's backward, whatever else pre saved.
        saved = tile.pre_saved if park or state.spec.num_groups > 1 else None
        with kept_state(state.spec.module, state.spec.changes):
            cut = run.pre(x_tile, self._arguments.tile(tile.span), record=True, saved=saved)
            if saved is not None:
                state.settle(saved, {"x": x_memory}, self._arguments, swap=park)
                saved.bind(x=x_memory)
            set_rng(generators, tile.post_rng)
            run.post(o_tile, record=True)
        tile.graph = run.graph
        return cut.tensors

    def _all_pre(self, dqkv: list[TilesOf]) -> None:
        tiles = self._state.tiles
        for index in reversed(range(len(tiles))):
            self._state.spec.observe("pre_backward", index)
            if index:
                tiles[index - 1].pre_saved.prefetch()
            self._bind_input(index)
            self._pre(index, tuple(d.tile(index) for d in dqkv))

    def _bind_input(self, index: int) -> None:
        saved = self._state.tiles[index].pre_saved
        if self._state.spec.num_groups > 1 and saved.names("x"):
            saved.bind(x=self._x_tiles.tile(index))

    def _pre(self, index: int, dqkv: tuple[torch.Tensor, ...]) -> None:
        tile = self._state.tiles[index]
        graph, tile.graph = tile.graph, None
        assert graph is not None
        dx, *gradients = graph.pre_backward(dqkv, self._state.shadows)
        tile.pre_saved = SavedTensors()
        self._add(gradients)
        if self._dx is not None:
            self._dx.add(index, dx)

    def _add(self, gradients: Sequence[torch.Tensor | None]) -> None:
        """Add what a stretch's backward gave to the sums, and what it wrote to `.grad`."""
        self._sums.add(gradients)
        self._sums.add(take_written_gradients(self._state.shadows))


class BlockPass:
    """A block run by tiles. `rest`: its outputs besides y; `previous`: the pass before it.

    failed: who is told of an error in backward.
    """

    def __init__(
        self,
        spec: BlockSpec,
        parameters: Sequence[torch.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        record: bool,
    ) -> None:
        """record: whether a backward may follow; without it nothing is saved."""
        self.rest: tuple[Any, ...] | None = None
        # Weak: a pass must not keep those before it alive once their graph is gone.
        self.previous: weakref.ref[Any] | None = None
        self.failed: Callable[[BaseException], None] | None = None
        self._state = BlockState(
            spec=spec,
            parameters=parameters,
            # Nothing is differentiated without a backward.
            shadows=shadows_of(parameters) if record else tuple(parameters),
            args=args,
            kwargs=kwargs,
            record=record,
            ambient=Ambient.current(spec.device.torch_device.type),
        )

    def forward(self, x: torch.Tensor, *, x_needs_grad: bool) -> torch.Tensor:
        """x: [batch, tokens, hidden] -> y, the same shape, without a graph."""
        self._state.x_needs_grad = x_needs_grad
        run = BlockForward(self._state)
        y = run.run(x)
        self.rest = run.rest
        return y

    @property
    def poisoned(self) -> list[StorageWeakRef]:
        """Storages that suspended frames were left with, when these are poisoned."""
        return self._state.poisoned

    @property
    def gathered_bytes(self) -> int:
        """Bytes of q, k, v and o of all tokens, which only attention and its backward need.

        None by groups of heads: what is there of them is measured, and never all.
        """
        o = self._state.o
        return self._state.qkv_bytes + o.num_bytes if isinstance(o, WholeTensor) else 0

    def prefetch(self, limit_bytes: int) -> None:
        """Start copies back for a backward that comes next, up to `limit_bytes`."""
        self._state.prefetch(limit_bytes)

    def backward(self, dy: torch.Tensor) -> tuple[torch.Tensor | None, list[torch.Tensor | None]]:
        """dy: [batch, tokens, hidden] -> (dx or None, gradients of the parameters).

        Raises: BackwardTwice.
        """
        state = self._state
        if state.x is None:
            raise BackwardTwice(
                "backward ran a second time through a wrapped block; its saved tensors are "
                "released by the first (retain_graph is not supported while wrapped)"
            )
        state.spec.observe("post_backward")
        in_flight = state.spec.in_flight
        # What the block itself sent comes back now, and copies to the host end in order.
        in_flight.allow(0 if state.spec.policy.swaps else state.spec.ahead_bytes)
        in_flight.release_done()
        x, given = state.x.take(), [None if state.o is None else state.o.take()]
        state.x = state.o = None
        gradients = BlockBackward(state, x, self._prefetch_previous).run(given, dy)
        # A loss that is held until the next step's is made holds its graph, and so this pass.
        state.let_go()
        if state.spec.park_pre:
            in_flight.drain()  # all that was parked has come back
        return gradients

    def saved_bytes(self) -> SavedBytes:
        """What forward saved, on the device or on the host, with all tiles recorded.

        By groups of heads pre's have the block's arguments, which wait on the host as they do.
        """
        state = self._state
        assert state.x is not None
        assert state.o is not None
        assert state.attention is not None
        around_qkv = sum(tile.qkv_saved.num_bytes for tile in state.tiles) - state.qkv_bytes
        return SavedBytes(
            x=state.x.num_bytes,
            o=state.o.num_bytes,
            qkv=state.qkv_bytes,
            attention=state.attention.saved_bytes,
            pre=sum(tile.pre_saved.num_bytes for tile in state.tiles) + state.parked_bytes,
            post=sum(tile.post_saved.num_bytes for tile in state.tiles) + max(around_qkv, 0),
            shared=sum(tile.pre_saved.shared_bytes(tile.post_saved) for tile in state.tiles),
        )

    def _prefetch_previous(self, limit_bytes: int) -> None:
        previous = None if self.previous is None else self.previous()
        if previous is not None:
            previous.prefetch(limit_bytes)


class BlockFunction(torch.autograd.Function):
    """y = block(x), with the block's trainable parameters as inputs of their own."""

    @staticmethod
    def forward(
        ctx: Any, block_pass: BlockPass, x: torch.Tensor, *parameters: torch.Tensor
    ) -> torch.Tensor:
        """x: [batch, tokens, hidden] -> y of the same shape."""
        ctx.block_pass = block_pass
        # Saved only so that autograd notices parameters changed between forward and backward.
        ctx.save_for_backward(*parameters)
        return block_pass.forward(x, x_needs_grad=ctx.needs_input_grad[1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """dy: [batch, tokens, hidden] -> (None, dx, *parameter gradients)."""
        # Asked for, because only then autograd looks at their versions.
        _ = ctx.saved_tensors
        block_pass: BlockPass = ctx.block_pass
        try:
            dx, gradients = block_pass.backward(dy)
        except BaseException as error:
            if block_pass.failed is not None:
                block_pass.failed(error)
            raise
        return (None, dx, *gradients)
