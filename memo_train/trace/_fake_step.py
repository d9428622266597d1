"""A model and its steps without arithmetic or memory: a trace, a profile, seconds by assumption.

    fake = FakeModel(lambda: AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), A800)
    step = fake.step(batch=1, tokens=1 << 20)                          # as Transformers runs it
    step = fake.step(batch=1, tokens=1 << 20, policy=step_policy)      # by token tiles
    profile = fake.profile(batch=1, tokens=1 << 20)                    # for the planner

How blocks may be run is found out without values too: from shapes, graphs and a try by tiles.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import nn

from memo_planner.policy import BlockPolicy, Place
from memo_planner.profile import Profile
from memo_planner.trace import BlockFlops, ProfileFile, ProfileSource, Trace
from memo_train.device import Device, get_cpu_device
from memo_train.errors import InvalidInput, MemoError
from memo_train.runtime import (
    NOT_RUNNABLE,
    AtCut,
    BlockCall,
    BlockPass,
    BlockSpec,
    BlockVerdict,
    ChoosePolicy,
    CopiesInFlight,
    HowToRun,
    ModelParts,
    StepPolicy,
    TokenDims,
    WrappedModel,
    assumed_loss,
    evaluating,
    find_parts,
    judge_plain_run,
    learn_token_dims,
    record_calls,
    storage_key,
)
from memo_train.trace._fake_device import FakeDevice, Speeds
from memo_train.trace._fake_mode import FakeArithmetic, Watcher
from memo_train.trace._flops import OpCost, count_block_flops
from memo_train.trace._places import PlaceRecorder
from memo_train.trace._profile import LONGEST_PROFILED_TOKENS, PLAIN_WAY, measure_profile
from memo_train.trace._record import Batch, record_requests, source_of

# A first, an inner and a last tile.
_NUM_TILES = 3
# Of the CPU's arena, in which the tensors of a fake step lie.
_ALIGNMENT_BYTES = 64


def assume_verdicts(parts: ModelParts, device: Device) -> tuple[BlockVerdict, ...]:
    """What the probe would find out, where that needs no values.

    A block that runs by tiles is taken to be token-wise outside attention: only a real run proves
    it. Raises: UnsupportedModel.
    """
    tokens = parts.probe_tokens()
    with evaluating(parts.causal_lm):
        shorter, calls = (record_calls(parts, n, device) for n in (tokens - 1, tokens))
        return tuple(
            _assume(
                block, call, learn_token_dims(short.arguments, call.arguments), device
            ).returning(call.rest)
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


@dataclass(frozen=True, kw_only=True)
class FakeStep:
    """One step that was not computed.

    trace: its requests. device_peak_bytes: most in use at once, model and optimiser included.
    host_peak_bytes: of the host pool. step_s, stall_s: by the speeds that were assumed.
    flops: of the whole step, recomputation included.
    """

    trace: Trace
    device_peak_bytes: int
    host_peak_bytes: int
    step_s: float
    stall_s: float
    flops: float


class FakeModel:
    """A causal LM of any size whose steps are followed operation by operation.

    A model's blocks are taken to be token-wise outside attention, which only a real run can prove
    (`memo_train.wrap` does). Memory that kernels use inside an operation is not seen.
    """

    def __init__(self, make_model: Callable[[], nn.Module], speeds: Speeds) -> None:
        """make_model: makes a causal LM as for `memo_train.wrap`; called without memory.

        Raises: UnsupportedModel; InvalidInput while device memory has a cap.
        """
        cap_bytes = get_cpu_device().counters().device_cap_bytes
        if cap_bytes is not None:
            raise InvalidInput(
                f"a fake model needs addresses beyond device memory's cap of {cap_bytes:,} bytes; "
                "unwrap the model that set it, or use another process"
            )
        self.device = FakeDevice(speeds)
        self._mode = FakeArithmetic()
        with self._mode:
            self.model = make_model()
            self.parts = find_parts(self.model)
        self._verdicts: tuple[BlockVerdict, ...] | None = None

    def step(
        self,
        *,
        batch: int,
        tokens: int,
        policy: StepPolicy | None = None,
        optimizer: bool = True,
    ) -> FakeStep:
        """A step of `batch` sequences of `tokens` that finds AdamW's moments and no gradients.

        policy: how the runtime carries it out; None for a model that is not wrapped.
        optimizer: whether AdamW follows; without it gradients stay.
        Raises: InvalidInput if the policy has another number of blocks or tokens.
        """
        _check_policy(policy, len(self.parts.blocks), tokens)
        choose = None if policy is None else lambda batch, tokens: policy
        with self._computing(), self._wrapped(choose) as wrapped:
            ids = torch.zeros((batch, tokens), dtype=torch.long)
            rows = Batch(ids=ids, labels=ids)
            adamw = _with_moments(self.model) if optimizer else None
            recorder = PlaceRecorder(self.device)
            gc.collect()  # else garbage of before is freed in mid-step, and looks like the step's
            self.device.reset_peak()
            before, start_s, flops = self.device.counters(), self.device.now(), self.device.flops
            others_bytes = before.device_used_bytes - _state_bytes(self.model, adamw)
            self._mode.watcher = _Clock(self.device, recorder)
            requests = record_requests(self.parts, wrapped, recorder, rows, adamw)
            after = self.device.counters()
            source = source_of(self.parts, wrapped, (batch, tokens), "fake")
            self.model.zero_grad()
            step_s = self.device.now() - start_s
        return FakeStep(
            trace=Trace.of(source, requests),
            device_peak_bytes=after.device_peak_bytes - others_bytes,
            host_peak_bytes=after.host_peak_bytes,
            step_s=step_s,
            stall_s=after.stall_s - before.stall_s,
            flops=self.device.flops - flops,
        )

    def profile(self, *, batch: int, tokens: int, park_pre: bool = False) -> Profile:
        """The profile that `memo_train.wrap` measures, with seconds by the assumed speeds."""
        with self._computing(), self._wrapped(_unplanned) as wrapped:
            assert wrapped is not None
            return measure_profile(wrapped, batch, tokens, replace(PLAIN_WAY, park_pre=park_pre))

    def block_flops(self, *, batch: int) -> BlockFlops:
        """FLOPs of one block's pre, attention and post."""
        with self._computing(), self._wrapped(_unplanned) as wrapped:
            assert wrapped is not None
            return count_block_flops(wrapped, batch)

    def profile_file(self, *, batch: int, tokens: int) -> ProfileFile:
        """Profile and FLOPs together, with what was assumed."""
        profile = self.profile(batch=batch, tokens=tokens)
        source = ProfileSource(
            kind="fake",
            model_hash=profile.model_hash,
            device=profile.device,
            batch=batch,
            tokens=min(tokens, LONGEST_PROFILED_TOKENS),
            assumptions=repr(self.device.speeds),
        )
        return ProfileFile.of(source, profile, flops=self.block_flops(batch=batch))

    @contextmanager
    def _computing(self) -> Iterator[None]:
        self._mode.watcher = _Clock(self.device, None)
        with self._mode:
            yield

    @contextmanager
    def _wrapped(self, choose: ChoosePolicy | None) -> Iterator[WrappedModel | None]:
        if choose is None:
            yield None
            return
        if self._verdicts is None:
            self._verdicts = assume_verdicts(self.parts, self.device)
        loss = assumed_loss(self.parts)
        wrapped = WrappedModel(self.parts, self._verdicts, self.device, loss=loss)
        wrapped.install(choose)
        try:
            yield wrapped
        finally:
            wrapped.restore()


class _Clock(Watcher):
    """Moves the device's clock, and tells a recorder which operation asks for memory."""

    def __init__(self, device: FakeDevice, recorder: PlaceRecorder | None) -> None:
        self._device, self._recorder = device, recorder

    def begins(self, func: Any) -> None:
        if self._recorder is not None:
            self._recorder.op(str(func.overloadpacket).removeprefix("aten."))

    def ended(self, cost: OpCost) -> None:
        self._device.compute(cost)
        if self._recorder is not None:
            self._recorder.op("")


def _check_policy(policy: StepPolicy | None, num_blocks: int, tokens: int) -> None:
    if policy is None:
        return
    given = (len(policy.policy.blocks), policy.policy.tokens)
    if given != (num_blocks, tokens):
        raise InvalidInput(
            f"the policy is for {given[0]} blocks and {given[1]:,} tokens, "
            f"the step has {num_blocks} blocks and {tokens:,} tokens"
        )


def _with_moments(model: nn.Module) -> torch.optim.AdamW:
    """An optimiser in its steady state."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _unplanned(batch: int, tokens: int) -> NoReturn:
    raise AssertionError(f"a profile chose no policy for {batch} x {tokens} tokens")


def _state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """Device bytes of parameters, buffers, gradients and moments, each in whole 64 bytes."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    states = () if optimizer is None else optimizer.state.values()
    tensors += [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
    sizes = {storage_key(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(-(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for size in sizes.values())
