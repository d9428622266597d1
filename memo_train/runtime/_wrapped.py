"""A model under the runtime: its blocks and its loss replaced by tiled ones, until `restore`."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from memo_planner.errors import InvalidInput
from memo_planner.policy import Policy, TilePlace
from memo_planner.schedule import CopyBudget
from memo_train.device import Device
from memo_train.errors import UnsupportedModel
from memo_train.runtime._block import BlockFunction, BlockPass
from memo_train.runtime._block_state import BlockSpec
from memo_train.runtime._checkpointed import run_checkpointed
from memo_train.runtime._fingerprint import Fingerprint
from memo_train.runtime._head_groups import num_groups_of
from memo_train.runtime._hooks import without_user_hooks
from memo_train.runtime._last_norm import LastNorm, norms_behind
from memo_train.runtime._loss import TiledLoss
from memo_train.runtime._loss_call import asks_for_loss
from memo_train.runtime._observe import MemoryBySize, Observer, StepMemory, ignore
from memo_train.runtime._parts import (
    ModelParts,
    Signature,
    check_block_call,
    check_model_call,
    makes_mask,
    needs_whole_blocks,
    runnable,
    wants_cache,
    without_caches,
)
from memo_train.runtime._probe import BlockVerdict, HowToRun, probe_model
from memo_train.runtime._probe_calls import split_input
from memo_train.runtime._ranks import Ranks, SharedStep
from memo_train.runtime._replaced import ReplacedForwards
from memo_train.runtime._saved import storage_keys
from memo_train.runtime._shadow import trainable_parameters
from memo_train.runtime._sharded import (
    in_one_call,
    pretended,
    sharded_in,
    whole,
    without_moves,
)
from memo_train.runtime._swap import CopiesInFlight
from memo_train.runtime._tile import TokenArguments, split_output

# What torch answers outside of any backward.
_NO_BACKWARD = -1
_DONE_INSTEAD = {
    HowToRun.CHECKPOINTED: "checkpointed whole",
    HowToRun.PLAIN: "run as they are, with nothing saved",
}


def report(parts: ModelParts, verdicts: tuple[BlockVerdict, ...], whole_loss: str | None) -> None:
    """Warn about everything that is not tiled, and why."""
    for how, done in _DONE_INSTEAD.items():
        whole = [(i, v.because) for i, v in enumerate(verdicts) if v.how is how]
        if not whole:
            continue
        numbers = ", ".join(str(index) for index, _ in whole)
        warnings.warn(
            f"{type(parts.blocks[whole[0][0]]).__name__}: blocks {numbers} are {done}, not tiled: "
            f"{whole[0][1]}",
            stacklevel=3,
        )
    if whole_loss is not None:
        warnings.warn(
            f"{type(parts.causal_lm).__name__}: the loss is not tiled: {whole_loss}",
            stacklevel=3,
        )


def check_shareable(parts: ModelParts, verdicts: tuple[BlockVerdict, ...]) -> None:
    """Refuse blocks whose tokens meet elsewhere than at a cut attention call.

    Ranks that share sequences would each mix its own tokens only. Raises: UnsupportedModel.
    """
    for index, verdict in enumerate(verdicts):
        why = verdict.because if verdict.how is not HowToRun.TILED else None
        if verdict.mixer is not None:
            why = "its tokens meet in another module than an attention call"
        if why is not None:
            raise UnsupportedModel(
                f"{type(parts.blocks[index]).__name__}: block {index} cannot be shared by ranks: "
                f"{why}; wrap it without mesh"
            )


def check_groups(num_groups: int, verdicts: tuple[BlockVerdict, ...], *, shared: bool) -> None:
    """Refuse groups into which a block's heads are not cut evenly, and groups of shared steps.

    Raises: InvalidInput.
    """
    if shared and num_groups > 1:
        raise InvalidInput(
            f"Policy.num_groups is {num_groups}; ranks that share a sequence exchange all heads at "
            "once, in 1 group; plan anew with the mesh"
        )
    for index, verdict in enumerate(verdicts):
        num_heads = num_groups if verdict.heads is None else verdict.heads.num_heads
        if num_heads % num_groups:
            raise InvalidInput(
                f"Policy.num_groups is {num_groups}; block {index} has {num_heads} key-value "
                "heads, which it must divide; plan anew, or use 1"
            )


def _parameter_types(block: nn.Module) -> Hashable:
    named = block.named_parameters()
    return tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in named)


@dataclass(frozen=True, kw_only=True)
class StepPolicy:
    """What a step carries out.

    loss_tile_tokens: positions per tile of the loss. copies: device bytes they may use.
    whole_bytes: of the smallest tensor of all tokens; the device places those among their like.
    most_loss_tiles: how many tiles of the loss are computed, where only bytes matter; None for all.
    """

    policy: Policy
    loss_tile_tokens: int
    copies: CopyBudget
    whole_bytes: int | None = None
    most_loss_tiles: int | None = None


ChoosePolicy = Callable[[int, int], StepPolicy]


class WrappedModel:
    """Puts tiled forwards in place of the model's own, and takes them out again.

    Attributes a profiler sets: `choose_policy`, asked at the start of each forward; `observer`;
    `active_block`, the only one that does not pass x through (None: all are active). `memory`
    looks after the device's memory in steps that nobody observes. `given`: names of the arguments
    of the last training step's call. `masked`: whether the step's call brings a mask.
    """

    def __init__(
        self,
        parts: ModelParts,
        verdicts: tuple[BlockVerdict, ...],
        device: Device,
        *,
        loss: TiledLoss | None,
    ) -> None:
        self.parts = parts
        self.device = device
        self.choose_policy: ChoosePolicy | None = None
        self.tile_counts: Counter[TilePlace] = Counter()
        self.observer: Observer = ignore
        self.memory: StepMemory = MemoryBySize()
        self.given: tuple[str, ...] = ()
        self.active_block: int | None = None
        self.masked = False
        self.ranks: Ranks | None = None
        self.verdicts = verdicts
        self._checked_shapes: list[set[tuple[int, ...]]] = [set() for _ in parts.blocks]
        self._in_flight = CopiesInFlight(0)
        self._step: StepPolicy | None = None
        self._in_model = False
        self._in_decoder = False
        self._is_plain = False
        self._runs_whole = False
        self._lasting: frozenset[int] = frozenset()
        self._last_pass: weakref.ref[Any] | None = None
        self._failed: Callable[[BaseException], None] | None = None
        self._forwards = ReplacedForwards()
        self._model_forward: Callable[..., Any] = parts.causal_lm.forward
        self._decoder_forward: Callable[..., Any] = parts.decoder.forward
        # Taken before `install` puts others in their places.
        self._block_forwards = tuple(block.forward for block in parts.blocks)
        self._norms = norms_behind(parts)
        self._last_y: weakref.ref[torch.Tensor] | None = None
        self._model_signature = Signature(parts.causal_lm.forward)
        self._decoder_signature = Signature(parts.decoder.forward)
        self._loss = loss
        self.fingerprint = Fingerprint(parts)
        self._proven = {self.fingerprint.state(trains=True): (verdicts, loss)}

    def install(self, choose_policy: ChoosePolicy) -> None:
        """Replace the forwards of the model, its decoder and its blocks.

        choose_policy: (batch, tokens) -> the policy of a step.
        """
        self.choose_policy = choose_policy
        for index, block in enumerate(self.parts.blocks):
            self._forwards.replace(block, partial(self._block_forward, index))
        for norm in self._norms:
            self._forwards.replace(norm.module, partial(self._norm_forward, norm))
        self._forwards.replace(self.parts.decoder, self._run_decoder)
        self._forwards.replace(self.parts.causal_lm, self.run_model)

    def restore(self) -> None:
        """Give the model its own forwards back, and wait for copies under way."""
        self._forwards.restore()
        self.memory.end()
        self._in_flight.drain()
        self.device.set_large_bytes(None)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """While active, the model's own forwards run as if it were not wrapped."""
        self.memory.end()
        self.device.set_large_bytes(None)
        before, self._is_plain = self._is_plain, True
        try:
            yield
        finally:
            self._is_plain = before

    @contextmanager
    def whole(self, indices: Iterable[int]) -> Iterator[None]:
        """While active, what FSDP2 shards outside of blocks, and of these blocks, is whole.

        Whatever runs then enters no collective, and calls no other block that computes. Coming in
        here is one: all ranks do, with the same `indices`, of one block of each kind at least.
        """
        blocks = self.parts.blocks
        if not self.fingerprint.is_sharded:
            yield
            return
        run_even_so = (
            i for i, v in enumerate(self.verdicts) if v.how is HowToRun.PLAIN or v.hands_on_tensors
        )
        chosen = sorted({*indices, *run_even_so})
        of_kind = {_parameter_types(blocks[index]): blocks[index] for index in reversed(chosen)}
        beside = [
            block if index in chosen else of_kind[_parameter_types(block)]
            for index, block in enumerate(blocks)
        ]
        inside = [module for block in blocks for module in sharded_in(block)]
        brought = [module for index in chosen for module in sharded_in(blocks[index])]
        modules = (*self.parts.sharded_outside, *brought)
        types = self.fingerprint.whole()
        with whole(modules), pretended(blocks, beside), without_moves(inside), types:
            yield

    @property
    def num_groups(self) -> int:
        """The most groups in which every tiled block's heads can attend; 1 if those of one meet."""
        tiled = [v for v in self.verdicts if v.how is HowToRun.TILED]
        heads = [0 if v.heads is None else v.heads.num_heads for v in tiled]
        return num_groups_of(math.gcd(*heads)) if heads and min(heads) > 0 else 1

    @property
    def why_no_groups(self) -> str | None:
        """Why the heads of a tiled block do not attend in groups; None if all do, or none is."""
        whys = (v.heads_meet for v in self.verdicts if v.how is HowToRun.TILED)
        return next((why for why in whys if why is not None), None)

    def how(self, step: StepPolicy, given: Iterable[str]) -> Hashable:
        """Equal for steps that ask for the same memory, as far as one can tell beforehand.

        given: names of the arguments that the step's call has.
        """
        causal_lm, model = self.parts.causal_lm, self.fingerprint.state(trains=False)
        whole_loss = self._loss is None or self._loss.will_be_whole
        # A first gradient outlives its step; one that is added to another does not.
        adds = any(p.grad is not None for p in causal_lm.parameters())
        return step, causal_lm.training, frozenset(given), whole_loss, adds, model

    def last_pass(self) -> Any:
        """The pass of the last block that ran with gradients, while its graph lives; or None."""
        return None if self._last_pass is None else self._last_pass()

    def run_model(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward under the runtime, without what others put around it since wrap."""
        if self._is_plain:
            return self._model_forward(*args, **kwargs)
        arguments = self._model_signature.by_name(args, kwargs)
        if self._generates(arguments):
            with self.plain():
                return self._model_forward(*args, **kwargs)
        output = self._together(self._run_step, arguments)
        last = self.last_pass()
        if last is not None and self._step is not None and not self._loss_is_ahead():
            held_bytes = 0 if self._loss is None else self._loss.held_bytes
            # The plan's peak has q, k, v and o of all tokens in it, which are not there yet.
            free_bytes = self._step.copies.ahead_bytes[-1] + last.gathered_bytes - held_bytes
            last.prefetch(max(free_bytes, 0))
        return output

    def _together(self, run: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """`run` of a step's arguments; of ranks that share it, with what they have agreed on."""
        if self.ranks is None:
            return run(arguments, None)
        if not self._is_profiled:
            self.memory.end()  # what ranks tell each other takes memory that is in no layout
        begin = self.ranks.rehearse if self._is_profiled else self.ranks.begin
        shared = begin(arguments)
        if shared is None:  # of this rank alone
            return run(arguments, None)
        try:
            return run(shared.arguments, shared)
        # Whatever it is: other ranks may be in an exchange, and wait for this one.
        except BaseException as error:
            shared.failed(error)
            raise

    def _generates(self, arguments: dict[str, Any]) -> bool:
        """Whether a call is one of generation: with a cache, and nothing saved for backward.

        A token at a time there is nothing to tile. Ranks that share a sequence have no cache of it.
        """
        return wants_cache(arguments) and not torch.is_grad_enabled() and not self._shares

    def _run_step(self, arguments: dict[str, Any], shared: SharedStep | None) -> Any:
        shape = check_model_call(arguments, self._model_signature)
        if self._loss is not None and shape is not None:
            # Before the step begins: a proof's memory is in no plan. With settings as in the step:
            # a proof holds for no others.
            with without_caches(self.fingerprint.configs):
                self._loss.prepare(arguments)
        self._begin_step(shape, arguments, shared)
        self._in_model, self._failed = True, None if shared is None else shared.failed
        try:
            return self._run_forward(arguments, shared)
        finally:
            self._in_model = False

    def _run_forward(self, arguments: dict[str, Any], shared: SharedStep | None) -> Any:
        loss = None if self._runs_whole else self._loss
        if shared is None:
            run = self._model_forward if loss is None else loss.forward
            with without_caches(self.fingerprint.configs):
                return run(**arguments)
        if loss is None and asks_for_loss(arguments):
            raise UnsupportedModel(
                f"the loss of {type(self.parts.causal_lm).__name__} is not tiled, so it cannot be "
                "that of tokens on several ranks; call it without labels, or wrap without mesh"
            )
        with without_caches(self.fingerprint.configs), shared.forward():
            if loss is None:
                return self._model_forward(**arguments)
            return loss.forward_shared(shared)

    @property
    def _shares(self) -> bool:
        """Whether the call that comes is of several ranks; what profiles and plans is of one."""
        return self.ranks is not None and not self._is_profiled

    def _loss_is_ahead(self) -> bool:
        """Whether backward begins with the loss, which then needs what a fetch would take."""
        return self._loss is not None and self._loss.in_backward

    def _run_decoder(self, *args: Any, **kwargs: Any) -> Any:
        """A decoder that is called without its model begins a step of its own."""
        if self._is_plain:
            return self._decoder_forward(*args, **kwargs)
        arguments = self._decoder_signature.by_name(args, kwargs)
        if self._in_model:
            return self._run_decoder_step(arguments, None)
        if self._generates(arguments):
            with self.plain():
                return self._decoder_forward(*args, **kwargs)
        return self._together(self._run_decoder_step, arguments)

    def _run_decoder_step(self, arguments: dict[str, Any], shared: SharedStep | None) -> Any:
        shape = check_model_call(arguments, self._decoder_signature)
        if not self._in_model:
            self._begin_step(shape, arguments, shared)
            self._failed = None if shared is None else shared.failed
        self._in_decoder = self._step is not None
        try:
            by_all = nullcontext() if shared is None else shared.forward()
            with by_all, without_caches(self.fingerprint.configs):
                return self._decoder_forward(**arguments)
        finally:
            self._in_decoder = False

    def _begin_step(
        self,
        shape: tuple[int, int] | None,
        arguments: dict[str, Any],
        shared: SharedStep | None = None,
    ) -> None:
        """shape: (batch, tokens); None where the model is left to refuse its arguments."""
        if shape is None:
            return
        if torch._C._current_graph_task_id() != _NO_BACKWARD:
            raise UnsupportedModel(
                "a wrapped model was called inside a backward, as torch.utils.checkpoint around it "
                "does; call it without: the plan decides what is recomputed"
            )
        self._look_at_model()
        assert self.choose_policy is not None
        masked = makes_mask(arguments) if shared is None else shared.masked
        self.masked = torch.is_grad_enabled() and masked
        step = self.choose_policy(*shape)  # which may run steps of its own, to profile
        check_groups(step.policy.num_groups, self.verdicts, shared=shared is not None)
        config = getattr(self.parts.causal_lm, "config", None)
        self._runs_whole = needs_whole_blocks(arguments, config)
        if self._runs_whole and any(v.how is HowToRun.TILED for v in self.verdicts):
            warnings.warn(
                "this step asks for the router logits of all tokens (output_router_logits): its "
                "blocks are checkpointed whole, and the plan does not count what that takes",
                stacklevel=2,
            )
        # Only now: steps that profile leave theirs behind.
        self._step, self._last_pass = step, None
        # A step without a backward may have left copies under way.
        self._in_flight.drain()
        if step.policy.num_groups > 1:
            model = self.parts.causal_lm
            self._lasting = storage_keys((*model.parameters(), *model.buffers()))
            for norm in self._norms:
                norm.prove(self.device, self.fingerprint.state(trains=True))
        self._begin_memory(shape, step, arguments)
        self.device.set_large_bytes(step.whole_bytes)
        if self._loss is not None:
            self._loss.tile_tokens = step.loss_tile_tokens
            self._loss.most_tiles = step.most_loss_tiles
            self._loss.observer = self._observe

    def _look_at_model(self) -> None:
        """Find out again how blocks may be run, where the model has changed since wrap.

        Raises: UnsupportedModel.
        """
        trains = torch.is_grad_enabled()
        if self._is_profiled:
            return
        self.fingerprint.check()
        if not self.fingerprint.is_changed(trains=trains):
            return
        state = self.fingerprint.state(trains=True)
        if state not in self._proven:
            self._is_plain = True
            try:
                causal_lm = self.parts.causal_lm
                again = runnable(causal_lm, "on the few tokens of another probe")
                hooks = without_user_hooks(causal_lm, self.parts.blocks)
                with hooks, without_caches(self.fingerprint.configs), again:
                    verdicts, loss = probe_model(self.parts, self.device, self._model_forward)
            finally:
                self._is_plain = False
            report(self.parts, verdicts, loss.why_whole)
            self._proven[state] = verdicts, None if loss.why_whole else loss
        self.verdicts, self._loss = self._proven[state]

    @property
    def _is_profiled(self) -> bool:
        return self.observer is not ignore or self.active_block is not None

    def _begin_memory(
        self, shape: tuple[int, int], step: StepPolicy, arguments: dict[str, Any]
    ) -> None:
        if torch.is_grad_enabled() and not self._is_profiled:
            self.given = tuple(sorted(n for n, value in arguments.items() if value is not None))
            self.memory.begin(*shape, self.how(step, self.given))
        else:
            self.memory.end()
        # Recorded lifetimes must not hang on how fast copies happened to be.
        self._in_flight.hold = self.memory.is_recording

    def _observe(self, stage: str, block: int, tile: int) -> None:
        self.observer(stage, block, tile)
        self.memory(stage, block, tile)

    def _block_forward(self, index: int, *args: Any, **kwargs: Any) -> Any:
        output = self._output_of(index, args, kwargs)
        if index == len(self.parts.blocks) - 1:
            y, _ = split_output(output)
            self._last_y = weakref.ref(y) if isinstance(y, torch.Tensor) else None
        return output

    def _output_of(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = self._block_forwards[index]
        if self._is_plain or not (self._in_model or self._in_decoder):
            return forward(*args, **kwargs)  # a user's own call of a block is not a step
        block, how = self.parts.blocks[index], self.verdicts[index].how
        check_block_call(block, args, kwargs)
        if self.active_block not in (None, index):
            return self._idle_output(index, args, kwargs)
        if self._shares:
            check_shareable(self.parts, self.verdicts)
        if how is HowToRun.PLAIN:
            return forward(*args, **kwargs)
        x, args, kwargs = split_input(args, kwargs)
        run = partial(self._run_block, self._spec(index, block), how, args, kwargs)
        return in_one_call(self.fingerprint.sharded_inside[index], x, run)

    def _run_block(
        self,
        spec: BlockSpec,
        how: HowToRun,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        x: torch.Tensor,
    ) -> Any:
        assert self._step is not None
        self._in_flight.allow(self._step.copies.in_flight_bytes[spec.index])
        others = list(TokenArguments(x.shape[1], args, kwargs, {}).tensors())
        # A gradient of another argument has no way out of the block's one autograd function.
        needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in others)
        if how is HowToRun.CHECKPOINTED or needs_grad or self._runs_whole:
            if self._shares:
                raise UnsupportedModel(
                    f"block {spec.index} has to run whole in this step, which ranks cannot share: "
                    "it is given tensors with gradients, or asked for router logits"
                )
            return run_checkpointed(spec, x, args, kwargs, others)
        return self._run_tiled(spec, x, args, kwargs)

    def _norm_forward(self, norm: LastNorm, *args: Any, **kwargs: Any) -> Any:
        """By groups of heads, of the last block's output: not whole in backward."""
        step, y = self._step, None if self._last_y is None else self._last_y()
        is_one = self._in_decoder and y is not None and not kwargs and len(args) == 1
        if not is_one or y is None or step is None or args[0] is not y:
            return norm.forward(*args, **kwargs)
        if step.policy.num_groups == 1 or not norm.can_run(y, self.device):
            return norm.forward(*args, **kwargs)
        return norm.run(y, step.policy.tile_tokens, (self.device, self._in_flight))

    def _idle_output(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a block hands on while another one is profiled: x, in the form of its output."""
        verdict = self.verdicts[index]
        if verdict.how is HowToRun.PLAIN:
            return self._block_forwards[index](*args, **kwargs)
        x, rest = split_input(args, kwargs)[0], verdict.rest
        if verdict.hands_on_tensors:  # what others compute with: only the block itself can tell
            with torch.no_grad():
                _, rest = split_output(self._block_forwards[index](*args, **kwargs))
        return x if rest is None else (x, *rest)

    def _run_tiled(
        self, spec: BlockSpec, x: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        parameters = trainable_parameters(spec.module)
        record = torch.is_grad_enabled() and (x.requires_grad or bool(parameters))
        block_pass = BlockPass(spec, parameters, args, kwargs, record=record)
        if record:
            # Weak: the graph holds the pass, and both must go together.
            block_pass.previous, self._last_pass = self._last_pass, weakref.ref(block_pass)
            block_pass.failed = self._failed
            y = BlockFunction.apply(  # type: ignore[no-untyped-call]
                block_pass, x, *parameters
            )
        else:
            y = block_pass.forward(x, x_needs_grad=False)
        return y if block_pass.rest is None else (y, *block_pass.rest)

    def _spec(self, index: int, block: nn.Module) -> BlockSpec:
        assert self._step is not None
        verdict, policy = self.verdicts[index], self._step.policy
        places = policy.blocks[index]
        if verdict.how is HowToRun.TILED and torch.is_grad_enabled():
            self.tile_counts[TilePlace.KEEP] += places.keep_tiles
            self.tile_counts[TilePlace.SWAP] += places.swap_tiles
            self.tile_counts[TilePlace.RECOMPUTE] += places.recompute_tiles
        return BlockSpec(
            module=block,
            forward=self._block_forwards[index],
            policy=places,
            tile_tokens=policy.tile_tokens,
            device=self.device,
            in_flight=self._in_flight,
            at_cut=verdict.at_cut,
            token_dims=verdict.token_dims,
            ahead_bytes=self._step.copies.ahead_bytes[index],
            park_pre=self._step.copies.park_pre,
            # Of an ordinary step only the memory is told, many times for each tile.
            observer=self.memory if self.observer is ignore else self._observe,
            index=index,
            changes=verdict.changes,
            mixer=verdict.mixer,
            checked_shapes=self._checked_shapes[index],
            sharded=self.fingerprint.sharded_inside[index],
            heads=verdict.heads,
            num_groups=1 if verdict.heads is None or self._shares else policy.num_groups,
            lasting=self._lasting,
        )
