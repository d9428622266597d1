"""What a pass of a block is told, and what its forward leaves for its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from memo_planner.policy import BlockPolicy, Place, TilePlace
from memo_train.device import Device
from memo_train.runtime._ambient import Ambient, RngState
from memo_train.runtime._attend import AttentionRun, Gathered
from memo_train.runtime._cut import Cut, CutForm, intercept
from memo_train.runtime._head_groups import GatheredPlanes, GroupedAttention, HeadCut
from memo_train.runtime._mixer import Mixer, cut_at
from memo_train.runtime._module_state import StatePlace, kept_state
from memo_train.runtime._observe import NOWHERE, Observer, ignore
from memo_train.runtime._parked import parkable, parked
from memo_train.runtime._planes import HostInput, Planes, TilesOf
from memo_train.runtime._saved import SavedTensor, SavedTensors, storage_key, storage_keys
from memo_train.runtime._shadow import ModuleTensors, Weights
from memo_train.runtime._sharded import without_moves
from memo_train.runtime._swap import CopiesInFlight, SwapTarget, WholeTensor, is_plain
from memo_train.runtime._tile import TileGraph, TokenArguments, TokenDims, tensors_in


class AtCut(Enum):
    """What happens to a suspended frame's q, k and v, whose values attention has taken over."""

    RELEASE = "release"
    HOLD = "hold"
    POISON = "poison"


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """A block and how a step carries it out.

    at_cut: what happens to a frame's q, k, v once they are gathered (the probe proves it safe).
    token_dims: which dimension of each further argument counts tokens.
    ahead_bytes: device bytes that copies back may take beyond what the plan counts on.
    park_pre: whether what pre saved waits on the host while attention's backward runs.
    observer: is told of every stage. index: of the block, for the observer.
    changes: buffers and attributes that forward changes, which its repetition must not.
    mixer: the module at which the block is cut; None cuts it at its attention call.
    checked_shapes: [batch, tokens] of steps whose graphs were looked at for lost gradients.
    sharded: modules inside the block whose own hooks bring their parameters in and let them go.
    heads: what was proven of its attention's heads. num_groups: of them, one after the other; 1
    runs attention whole. lasting: `storage_keys` of what the model holds longer than a step.
    """

    module: nn.Module
    forward: Callable[..., Any]
    policy: BlockPolicy
    tile_tokens: int
    device: Device
    in_flight: CopiesInFlight
    at_cut: AtCut
    token_dims: TokenDims
    ahead_bytes: int = 0
    park_pre: bool = False
    observer: Observer = ignore
    index: int = NOWHERE
    changes: frozenset[StatePlace] = frozenset()
    mixer: Mixer | None = None
    checked_shapes: set[tuple[int, ...]] = field(default_factory=set)
    sharded: tuple[nn.Module, ...] = ()
    heads: HeadCut | None = None
    num_groups: int = 1
    lasting: frozenset[int] = frozenset()

    def observe(self, stage: str, tile: int = NOWHERE) -> None:
        """Tell the observer that a stage of this block begins."""
        self.observer(stage, self.index, tile)

    def cut_at_mixer(self) -> AbstractContextManager[None]:
        """While active, frames of the block are suspended at its mixer."""
        assert self.mixer is not None
        kept = partial(kept_state, self.module, self.changes)
        return cut_at(self.mixer, self.module, self.device.generators, kept)

    @property
    def swap_target(self) -> SwapTarget:
        """Where this block's tensors are swapped to."""
        return self.device, self.in_flight


class TileRecord:
    """What is kept of one tile between forward and backward.

    pre_rng, post_rng: random-number states at the start of pre and post, of a tile that runs again.
    Of a recorded tile: its graph, what pre and post saved for it, and q, k and v, which attention's
    backward needs.
    """

    def __init__(self, span: range, place: TilePlace) -> None:
        self.span = span
        self.place = place
        self.pre_rng: RngState = ()
        self.post_rng: RngState = ()
        self.graph: TileGraph | None = None
        self.pre_saved = SavedTensors()
        self.post_saved = SavedTensors()
        self.qkv_saved = SavedTensors()
        self.qkv: list[SavedTensor] = []

    @property
    def is_recorded(self) -> bool:
        """Whether forward records this tile's graph."""
        return self.place is not TilePlace.RECOMPUTE

    @property
    def swapped_bytes(self) -> int:
        """Bytes that will come back from the host for post's backward and attention's."""
        return self.qkv_saved.swapped_bytes + self.post_saved.swapped_bytes

    def prefetch(self) -> None:
        """Start the copies back for post's backward and attention's."""
        self.qkv_saved.prefetch()
        self.post_saved.prefetch()

    def take_qkv(self) -> tuple[torch.Tensor, ...]:
        """q, k and v of a recorded tile, once: the references are given away."""
        qkv = tuple(self.qkv_saved.restore(entry) for entry in self.qkv)
        self.qkv, self.qkv_saved = [], SavedTensors()
        return qkv


@dataclass(frozen=True, kw_only=True)
class SavedBytes:
    """Bytes a block saved for backward, by class; pre does not count q, k and v.

    post counts what lies around a tile's q, k and v in their storages: it stays as long as they do.
    shared: of pre, what post saved as well. A kept tile has it once, a swapped one sends it twice.
    """

    x: int
    o: int
    qkv: int
    attention: int
    pre: int
    post: int
    shared: int


@dataclass(kw_only=True)
class BlockState:
    """One pass between its forward and its backward.

    parameters: the block's trainable ones; shadows: their leaf aliases in the block's graphs.
    args, kwargs: the block's further arguments. record: whether a backward may follow.
    attention_rng: random-number states before attention, where it runs again.
    tensors: the parameters and buffers that forward found in the block. poisoned: storages that
    frames were left with at the cut, when these are poisoned. parked_bytes: of arguments that wait
    on the host while attention runs.
    """

    spec: BlockSpec
    parameters: Sequence[torch.Tensor]
    shadows: Sequence[torch.Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    record: bool
    ambient: Ambient
    tensors: ModuleTensors | None = None
    weights: Weights | None = None
    x_needs_grad: bool = False
    tiles: list[TileRecord] = field(default_factory=list)
    attention: AttentionRun | GroupedAttention | None = None
    x: WholeTensor | HostInput | None = None
    o: WholeTensor | Planes | None = None
    attention_rng: RngState = ()
    qkv_bytes: int = 0
    parked_bytes: int = 0
    poisoned: list[StorageWeakRef] = field(default_factory=list)
    foreign: tuple[TokenArguments, frozenset[int]] | None = None

    def enter(self, stack: ExitStack) -> None:
        """The surroundings in which the block's own code runs, in forward and in backward."""
        stack.enter_context(without_moves(self.spec.sharded))
        stack.enter_context(intercept())
        if self.spec.mixer is not None:
            stack.enter_context(self.spec.cut_at_mixer())
        stack.enter_context(self.ambient.restored())
        if self.record:
            # As forward found them: by backward others may be in their places.
            if self.tensors is None:
                self.tensors = ModuleTensors(self.spec.module)
            if self.weights is None:
                self.weights = Weights(self.spec.module, self.parameters, self.shadows)
            stack.enter_context(self.weights.present())
            stack.enter_context(self.tensors.installed(self.parameters, self.shadows))

    def prefetch(self, limit_bytes: int) -> None:
        """Start copies back in the order backward needs them, while they fit `limit_bytes`."""
        wholes = (self.x, self.o)
        items: list[WholeTensor | HostInput | Planes | TileRecord] = [
            t for t in wholes if t is not None
        ]
        for item in (*items, *reversed(self.tiles)):
            limit_bytes -= item.swapped_bytes
            if limit_bytes < 0:
                return
            item.prefetch()

    def keep_input(self, x: torch.Tensor) -> None:
        """Have x ready for backward: kept or swapped, by groups of heads for tiles to come back."""
        device, swap = self.spec.device, self.spec.policy.x is Place.SWAP
        if swap and self.spec.num_groups > 1 and is_plain(x) and device.owns(storage_key(x)):
            self.x = HostInput.of(x, self.spec.swap_target)
        else:
            self.x = WholeTensor(x, *self.spec.swap_target, swap=swap)

    def input_tiles(self, x: torch.Tensor | HostInput) -> TilesOf:
        """The tiles of x as graphs that backward needs have them: by groups of heads, apart."""
        return TilesOf(x, self.spec.tile_tokens, apart=self.spec.num_groups > 1)

    def gathering(self, tokens: int, form: CutForm) -> Gathered | GatheredPlanes:
        """What q, k and v of all tokens are put into."""
        spec = self.spec
        if spec.num_groups == 1:
            return Gathered(tokens, form)
        return GatheredPlanes(tokens, form, spec.num_groups, spec.swap_target)

    @property
    def planes_target(self) -> SwapTarget | None:
        """Where by groups of heads everything of all tokens waits; None where all is whole."""
        return self.spec.swap_target if self.spec.num_groups > 1 else None

    @property
    def is_again(self) -> bool:
        """Whether attention's forward runs again in backward, which finds no o."""
        return self.record and self.spec.policy.o is Place.RECOMPUTE

    def attention_of(self, cut: Cut, options: dict[str, Any]) -> AttentionRun | GroupedAttention:
        """The attention of a cut. options: of the call on all tokens."""
        spec = self.spec
        if spec.num_groups == 1:
            return AttentionRun(cut, options)
        assert spec.heads is not None
        return GroupedAttention(cut, options, spec.heads, spec.num_groups)

    def parked(
        self, attention: AttentionRun | GroupedAttention, *wholes: torch.Tensor
    ) -> AbstractContextManager[None]:
        """While active, by groups of heads, the block's arguments and `wholes` wait on the host.

        But for what attention, which runs then, reads. What outlives the step stays: a step that
        fails for want of memory might not bring it back.
        """
        spec = self.spec
        if not isinstance(attention, GroupedAttention) or spec.at_cut is AtCut.HOLD:
            return nullcontext()
        own = (*self.shadows, *spec.module.parameters(), *spec.module.buffers())
        read = spec.lasting | storage_keys((*attention.reads(), *own))
        given = parkable(tensors_in((self.args, self.kwargs)), read, spec.device)
        self.parked_bytes = sum(storage.nbytes() for storage in given)
        more = parkable(wholes, read | {s.data_ptr() for s in given}, spec.device)
        return parked((*given, *more), spec.device, poisons=spec.at_cut is AtCut.POISON)

    def let_go(self) -> None:
        """Drop what backward was run on: position tables and masks are as large as activations."""
        self.tiles.clear()
        self.args, self.kwargs, self.foreign = (), {}, None

    def settle(
        self,
        saved: SavedTensors,
        known: dict[str, torch.Tensor],
        arguments: TokenArguments,
        *,
        swap: bool,
    ) -> None:
        """Decide where a stretch's saved tensors live; what outlives the step is not swapped."""
        target = self.spec.swap_target if swap else None
        place_of = self.weights.place_of if self.weights is not None and self.weights.move else None
        saved.settle(known, self._foreign(arguments), target, place_of)

    def _foreign(self, arguments: TokenArguments) -> frozenset[int]:
        """The memory of what outlives the step, looked up once for each direction of a pass.

        A forward that puts other buffers in place is looked at in each stretch.
        """
        if self.foreign is None or self.foreign[0] is not arguments or self.spec.changes:
            module = self.spec.module
            # Frozen parameters have no shadows; either kind is on the device anyway.
            own = (*self.shadows, *module.parameters(), *module.buffers())
            self.foreign = arguments, storage_keys((*arguments.tensors(), *own))
        return self.foreign[1]

    def arguments(self, tokens: int) -> TokenArguments:
        """The block's further arguments, ready to be cut to tiles."""
        return TokenArguments(tokens, self.args, self.kwargs, self.spec.token_dims)

    def leaf(self, x_tile: torch.Tensor) -> torch.Tensor:
        """A tile of x as the leaf of its graph."""
        return x_tile.detach().requires_grad_(self.x_needs_grad)
