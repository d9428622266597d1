"""The gradients of a block's ways to run, compared with plain autograd's.

The block runs on a few tokens with a random gradient of its output, as plain autograd runs it, by
tiles in each of keep, swap and recompute (mixed in two runs), or checkpointed. Compared are its
output, the gradients of x and of every parameter (also those that a function inside writes to
`.grad` itself), and what it leaves on its modules. It runs in training mode, with dropout off,
unless it draws random numbers even so. A gradient where that of the output is zero is a loss the
block makes by itself.

The bound of a difference is the probe's tolerance for the block's dtype, relative to the norm of
plain autograd's gradient. A gradient that is rounding alone (a bias of k) is beyond any such bound:
there, plain autograd on an x that is off by one rounding tells what rounding does.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from memo_planner.policy import BlockPolicy, Place
from memo_train.errors import MemoError
from memo_train.runtime._block import BlockPass
from memo_train.runtime._block_state import AtCut, BlockSpec
from memo_train.runtime._checkpointed import run_checkpointed
from memo_train.runtime._head_groups import HeadCut, num_groups_of
from memo_train.runtime._mixer import Mixer
from memo_train.runtime._module_state import (
    ModuleState,
    StatePlace,
    graph_holders,
    kept_gradients,
    kept_state,
)
from memo_train.runtime._probe_calls import BlockCall
from memo_train.runtime._shadow import (
    installed,
    shadows_of,
    take_written_gradients,
    trainable_parameters,
)
from memo_train.runtime._tile import TokenArguments, alias_of, split_output, tile_spans

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 2e-2}
"""By dtype: how far a tiled run may be off the whole one, of the largest value or of the norm."""

NOT_RUNNABLE = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)

_TIMES_NOISE = 8.0
_OF_INPUT = "its input"


class _Mode(Enum):
    """How a block is made to run the same way twice, in the order of preference."""

    TRAINING = "training"
    WITHOUT_DROPOUT = "training, dropout off"
    EVALUATING = "evaluating"


@dataclass(frozen=True, kw_only=True)
class BlockRun:
    """What one run gave. gradients: by the parameters' names, and of the input.

    left: what forward changed on the modules, each value as the run left it.
    """

    y: torch.Tensor
    gradients: dict[str, torch.Tensor | None]
    left: dict[StatePlace, Any]


class GradientProbe:
    """Runs one block on its recorded call with gradients, and leaves it as it was."""

    def __init__(self, call: BlockCall, spec: BlockSpec) -> None:
        """spec: with the tile's tokens; its policy does not count."""
        args, kwargs = (_without_graph(value) for value in call.arguments)
        self._call = replace(call, args=args, kwargs=kwargs)
        self._block, self._spec = spec.module, spec
        self._parameters = trainable_parameters(self._block)
        self._names = [n for n, p in self._block.named_parameters() if p.requires_grad]
        self._mode = _Mode.EVALUATING
        self._dy = torch.empty(0)
        self._sizes: dict[str, float] = {}
        self._noise: dict[str, float] | None = None
        self.own_loss: str | None = None
        self.plain = self._first_plain_run()
        self._spec = replace(spec, changes=self.changes)

    def cut_at(self, mixer: Mixer) -> GradientProbe:
        """The same with the block cut at `mixer`."""
        probe = copy.copy(self)
        probe._spec = replace(self._spec, mixer=mixer)
        return probe

    @property
    def changes(self) -> frozenset[StatePlace]:
        """The buffers and attributes that the block's forward changes."""
        return frozenset(self.plain.left)

    def why_not_tiled(self, at_cut: AtCut) -> str | None:
        """Why the block is not run by tiles, with frames left at the cut like that."""
        num_tiles = len(tile_spans(self._call.x.shape[1], self._spec.tile_tokens))
        found = (self._why_not_by(policy, at_cut) for policy in _mixed_policies(num_tiles))
        return next((why for why in found if why is not None), None)

    def _why_not_by(self, policy: BlockPolicy, at_cut: AtCut) -> str | None:
        """Why not by such tiles. A run's gradients, as many bytes as parameters, end with it."""
        try:
            run = self._undisturbed(partial(self._tiled, policy, at_cut))
        except (MemoError, *NOT_RUNNABLE) as error:
            return f"it does not run on a part of the tokens ({error})"
        difference = self._difference(run)
        return None if difference is None else f"by tiles ({_places_of(policy)}), {difference}"

    def why_not_grouped(self, heads: HeadCut, at_cut: AtCut) -> str | None:
        """Why attention is not run in groups of heads, in a block that is run by tiles."""
        tokens = self._call.x.shape[1]
        # What tiles do was proven without groups; two take less time than three.
        tile_tokens = math.ceil(tokens / 2)
        probe = copy.copy(self)
        probe._spec = replace(
            self._spec,
            heads=heads,
            num_groups=num_groups_of(heads.num_heads),
            tile_tokens=tile_tokens,
        )
        recomputed = BlockPolicy(
            keep_tiles=0,
            swap_tiles=0,
            recompute_tiles=len(tile_spans(tokens, tile_tokens)),
            x=Place.SWAP,
            o=Place.SWAP,
        )
        why = probe._why_not_by(recomputed, at_cut)
        return None if why is None else f"in groups of heads, {why}"

    def why_not_checkpointed(self) -> str | None:
        """Why the block is not even checkpointed."""
        try:
            run = self._undisturbed(self._checkpointed)
        except (MemoError, *NOT_RUNNABLE) as error:
            return f"it does not run twice ({error})"
        return self._difference(run)

    def _first_plain_run(self) -> BlockRun:
        """The plain run in the first mode in which the block draws no random numbers."""
        generators = self._spec.device.generators
        for mode in _Mode:
            self._mode, self.own_loss = mode, None
            before = [generator.get_state() for generator in generators]
            run = self._undisturbed(lambda: self._plain(self._call.x, looks_for_loss=True))
            after = [generator.get_state() for generator in generators]
            if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
                break
        return run

    def _undisturbed(self, run: Callable[[], BlockRun]) -> BlockRun:
        """`run()` in the probe's mode; parameters, their gradients, modules are as before."""
        block = self._block
        # What a run leaves in `.grad` is its own.
        with kept_state(block), _in_mode(block, self._mode), kept_gradients(block):
            return run()

    def _run_forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = split_output(self._block.forward(x, *self._call.args, **self._call.kwargs))
        return y

    def _plain(self, x: torch.Tensor, *, looks_for_loss: bool) -> BlockRun:
        state, shadows = ModuleState(self._block), shadows_of(self._parameters)
        x = x.detach().clone().requires_grad_()
        with torch.enable_grad(), installed(self._block, self._parameters, shadows):
            y = self._run_forward(x.clone())  # no leaf, so that the block may write to it
            left = _copies(state.changed())
            if looks_for_loss:
                self._dy = _random_like(y)
                self._look_for_loss(y, x, shadows, left)
                # The look for a loss has used up the graph.
                y = y if y.grad_fn is None else self._run_forward(x.clone())
            return self._differentiated(y, x, shadows, left)

    def _look_for_loss(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        shadows: Sequence[torch.Tensor],
        left: Mapping[StatePlace, Any],
    ) -> None:
        """Set `own_loss` if the block makes a loss by itself or leaves one on a module."""
        holders = graph_holders(left)
        if holders:
            self.own_loss = f"it leaves a tensor that requires a gradient on `{holders[0]}`"
            return
        run = self._differentiated(y, x, shadows, {}, torch.zeros_like(self._dy))
        nonzero = [n for n, g in run.gradients.items() if g is not None and bool(g.any())]
        if nonzero:
            where = "has a gradient where that of the output is zero"
            self.own_loss = f"it makes a loss by itself ({nonzero[0]} {where})"

    def _differentiated(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        shadows: Sequence[torch.Tensor],
        left: dict[StatePlace, Any],
        dy: torch.Tensor | None = None,
    ) -> BlockRun:
        if y.requires_grad:
            inputs = [x, *shadows]
            torch.autograd.backward(y, self._dy if dy is None else dy, inputs=inputs)
        found = take_written_gradients([x, *shadows])
        return self._run(y, found[0], found[1:], left)

    def _run(
        self,
        y: torch.Tensor,
        dx: torch.Tensor | None,
        gradients: Sequence[torch.Tensor | None],
        left: dict[StatePlace, Any],
    ) -> BlockRun:
        written = take_written_gradients(self._parameters)
        both = zip(gradients, written, strict=True)
        totals = [a if b is None else b if a is None else a + b for a, b in both]
        named = dict(zip(self._names, totals, strict=True)) | {_OF_INPUT: dx}
        return BlockRun(y=y.detach(), gradients=named, left=left)

    def _tiled(self, policy: BlockPolicy, at_cut: AtCut) -> BlockRun:
        state, x = ModuleState(self._block), self._call.x.detach().clone()
        spec = replace(self._spec, policy=policy, at_cut=at_cut, checked_shapes=set())
        call = self._call
        with torch.enable_grad():
            block_pass = BlockPass(spec, self._parameters, call.args, call.kwargs, record=True)
        with torch.no_grad():
            y = block_pass.forward(x, x_needs_grad=True)
            if at_cut is AtCut.POISON and _is_held(block_pass):
                raise RuntimeError("something holds q, k or v of a tile beyond its forward")
            dx, gradients = block_pass.backward(self._dy.to(y.dtype))
        return self._run(y, dx, gradients, _copies(state.changed()))

    def _checkpointed(self) -> BlockRun:
        state, shadows = ModuleState(self._block), shadows_of(self._parameters)
        x = self._call.x.detach().clone().requires_grad_()
        args, kwargs = self._call.arguments
        others = list(TokenArguments(x.shape[1], args, kwargs, {}).tensors())
        spec = replace(self._spec, policy=_ONE_SWAPPED)
        with torch.enable_grad(), installed(self._block, self._parameters, shadows):
            y, _ = split_output(run_checkpointed(spec, alias_of(x), args, kwargs, others))
        run = self._differentiated(y, x, shadows, {})
        return replace(run, left=_copies(state.changed()))

    @torch.no_grad()
    def _difference(self, run: BlockRun) -> str | None:
        """What `run` gives that plain autograd does not, beyond rounding."""
        plain, tolerance = self.plain, _tolerance(self.plain.y)
        for name, expected in ({"its output": plain.y} | plain.gradients).items():
            found = run.y if name == "its output" else run.gradients[name]
            if expected is None or found is None:
                if expected is not found:
                    none, some = ("whole", "so") if expected is None else ("so", "whole")
                    return f"{name} has no gradient when run {none} and one when run {some}"
                continue
            off, size = _distance(found, expected), self._size_of(name, expected)
            # `not <=` and not `>`: NaN must not pass.
            if not off <= tolerance * size and not off <= self._noise_of(name, tolerance):
                return f"{_of(name)} differs by {off / max(size, 1e-30):.2g} of it"
        return _state_difference(run.left, plain.left, tolerance)

    def _size_of(self, name: str, expected: torch.Tensor) -> float:
        """The norm of plain autograd's result."""
        if name not in self._sizes:
            self._sizes[name] = _size(expected)
        return self._sizes[name]

    def _noise_of(self, name: str, tolerance: float) -> float:
        """A bound by how far plain autograd's result moves when x is off by one rounding.

        It is at most the tolerance of all gradients together: a block that is not the same twice
        moves much further.
        """
        if name not in self.plain.gradients:
            return 0.0
        if self._noise is None:
            x = self._call.x.detach()
            signs = torch.where(_random_like(x) > 0, 1.0, -1.0).to(x.dtype)
            moved = x * (1 + torch.finfo(x.dtype).eps * signs)
            run = self._undisturbed(lambda: self._plain(moved, looks_for_loss=False))
            pairs = {n: (g, self.plain.gradients[n]) for n, g in run.gradients.items()}
            self._noise = {
                n: 0.0 if a is None or b is None else _distance(a, b) for n, (a, b) in pairs.items()
            }
        sizes = [self._size_of(n, g) for n, g in self.plain.gradients.items() if g is not None]
        return min(_TIMES_NOISE * self._noise[name], tolerance * math.hypot(*sizes))


def _without_graph(value: Any) -> Any:
    """A call's arguments as leaves: the graphs that made them can be differentiated only once."""
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_() if value.requires_grad else value
    if type(value) in (tuple, list):
        return type(value)(map(_without_graph, value))
    if type(value) is dict:
        return {key: _without_graph(item) for key, item in value.items()}
    return value


def _of(name: str) -> str:
    return name if name == "its output" else f"the gradient of {name}"


_ONE_SWAPPED = BlockPolicy(
    keep_tiles=0, swap_tiles=1, recompute_tiles=0, x=Place.SWAP, o=Place.SWAP
)


def _mixed_policies(num_tiles: int) -> tuple[BlockPolicy, BlockPolicy]:
    """Two policies: of three tiles each is run in two ways, and each way is given to two tiles.

    Most of a wide block's run is reading and writing its parameters and their gradients, as often
    as there are tiles: a run for each way alone would take half as long again. x and o are swapped
    in the first and kept in the second.
    """
    swapped = math.ceil(2 * num_tiles / 3)
    recomputed = num_tiles // 3
    return (
        BlockPolicy(
            keep_tiles=0,
            swap_tiles=swapped,
            recompute_tiles=num_tiles - swapped,
            x=Place.SWAP,
            o=Place.SWAP,
        ),
        BlockPolicy(
            keep_tiles=num_tiles - recomputed,
            swap_tiles=0,
            recompute_tiles=recomputed,
            x=Place.KEEP,
            o=Place.KEEP,
        ),
    )


def _places_of(policy: BlockPolicy) -> str:
    """The ways of a policy's tiles, in words."""
    places = {policy.tile_place(tile).value for tile in range(policy.num_tiles)}
    return " and ".join(sorted(places))


def _is_held(block_pass: BlockPass) -> bool:
    """Whether anybody holds the memory of q, k and v after the frames that made them ended."""
    held = [storage for storage in block_pass.poisoned if not _is_gone(storage)]
    if held:
        gc.collect()  # a cycle may hold a frame's tensors for a while
    return not all(map(_is_gone, held))


def _is_gone(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a result is another's but for rounding: its values, by the largest one."""
    if found.shape != expected.shape:
        return False
    worst = float((found - expected).abs().max())
    # `<=`, so that NaN is another.
    return worst <= TOLERANCE.get(expected.dtype, 1e-4) * float(expected.abs().max())


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference where both are finite; inf if only one of them is somewhere."""
    off = float(torch.linalg.vector_norm(found - expected, dtype=_wide(expected)))
    if math.isfinite(off):
        return off
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return math.inf
    difference = (found - expected).where(finite, 0)
    return float(torch.linalg.vector_norm(difference, dtype=_wide(expected)))


def _size(tensor: torch.Tensor) -> float:
    """Norm of a tensor's finite values."""
    size = float(torch.linalg.vector_norm(tensor, dtype=_wide(tensor)))
    if math.isfinite(size):
        return size
    finite = tensor.where(tensor.isfinite(), 0)
    return float(torch.linalg.vector_norm(finite, dtype=_wide(tensor)))


def _tolerance(y: torch.Tensor) -> float:
    """By the coarsest dtype that the block computes in: its output's, or autocast's."""
    kind, of_output = y.device.type, TOLERANCE.get(y.dtype, 1e-4)
    if not torch.is_autocast_enabled(kind):
        return of_output
    return max(of_output, TOLERANCE.get(torch.get_autocast_dtype(kind), 1e-4))


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _state_difference(
    found: Mapping[StatePlace, Any], expected: Mapping[StatePlace, Any], tolerance: float
) -> str | None:
    for place in {**expected, **found}:
        both = place in found and place in expected
        if not both or not _is_same(found[place], expected[place], tolerance):
            return f"it leaves another value on `{place}`"
    return None


def _is_same(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            return False
        if not (expected.is_floating_point() or expected.is_complex()):
            return torch.equal(found, expected)
        return _distance(found, expected) <= tolerance * _size(expected)
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(_is_same(a, b, tolerance) for a, b in zip(found, expected, strict=True))
        )
    if isinstance(expected, dict):
        return isinstance(found, dict) and _is_same(
            list(found.values()), list(expected.values()), tolerance
        )
    if isinstance(expected, float):
        return bool(abs(found - expected) <= tolerance * abs(expected))
    return not isinstance(expected, bool | int | str) or bool(found == expected)


def _copies(values: Mapping[StatePlace, Any]) -> dict[StatePlace, Any]:
    """The values as they are now; further runs write to tensors and containers."""
    return {place: _copy(value) for place, value in values.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value


def _random_like(tensor: torch.Tensor) -> torch.Tensor:
    """Normal numbers, always the same, drawn from no generator that others use."""
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(tensor.shape, generator=generator)
    return values.to(device=tensor.device, dtype=tensor.dtype)


@contextmanager
def _in_mode(block: nn.Module, mode: _Mode) -> Iterator[None]:
    modes = [(module, module.training) for module in block.modules()]
    block.train(mode is not _Mode.EVALUATING)
    try:
        with ExitStack() as stack:
            if mode is _Mode.WITHOUT_DROPOUT:
                stack.enter_context(_NoDropout())
            yield
    finally:
        for module, training in modes:
            module.training = training


_ATTENTION: Callable[..., Any] = F.scaled_dot_product_attention


class _NoDropout(TorchFunctionMode):
    """Dropout passes its input on, and attention's drops nothing."""

    _dropouts = (F.dropout, torch.dropout, F.feature_alpha_dropout, F.alpha_dropout)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._dropouts:
            return args[0] if args else kwargs["input"]
        if func is _ATTENTION:
            # q, k, v and the mask; dropout's is the fifth.
            args, kwargs = args[:4], kwargs | {"dropout_p": 0.0} | _positional(args)
        return func(*args, **kwargs)


def _positional(args: Sequence[Any]) -> dict[str, Any]:
    """Options of an attention call that were given by position, but for dropout's."""
    return dict(zip(("is_causal", "scale"), args[5:], strict=False))
