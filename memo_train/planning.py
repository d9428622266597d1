"""Plans the steps of a wrapped model, and puts its caps on the device.

The model is measured once for each precision; from that profile every batch and length is planned.
Of lengths that nobody asked for ahead, all of a bucket (an eighth of an octave) go by the plan of
its longest.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch

from memo_planner import BlockPolicy, Limits, Place, Plan, PlanInfeasible, Policy, Profile
from memo_planner.programme import predict
from memo_planner.schedule import CopyBudget, copy_budget, plan_on_clock
from memo_train.device import Device
from memo_train.errors import UnsupportedModel
from memo_train.layout import Shape, StepLayouts
from memo_train.runtime import (
    ModelParts,
    StepPolicy,
    WrappedModel,
    precision,
    runnable,
    without_user_hooks,
)
from memo_train.trace import (
    LONGEST_PROFILED_TOKENS,
    KeptProfile,
    for_two_sequences,
    measure_profile,
)


class Caps:
    """Remembers the device's caps as it is made; `set` changes some, `restore` puts those back."""

    def __init__(self, device: Device) -> None:
        counters = device.counters()
        self._device = device
        self._before = (counters.device_cap_bytes, counters.host_cap_bytes)
        self._is_set = [False, False]

    def set(self, device_bytes: int | None, host_bytes: int | None, parts: ModelParts) -> None:
        """Set the caps that are given.

        The model's tensors that are older than the device count against its cap, though not in it.
        Raises: InvalidDeviceArgument if more is in use already, where the device knows of it.
        """
        if device_bytes is not None:
            where = self._device.torch_device
            tensors = (*parts.causal_lm.parameters(), *parts.causal_lm.buffers())
            here = [tensor for tensor in tensors if tensor.device == where]
            older = sum(t.nbytes for t in here if not self._device.owns(t.data_ptr()))
            self._device.set_device_cap(max(device_bytes - older, 1))
            self._is_set[0] = True
        if host_bytes is not None:
            self._device.set_host_cap(host_bytes)
            self._is_set[1] = True

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """While active, the device's cap is what it was before this object set one."""
        cap_bytes = self._device.counters().device_cap_bytes
        if self._is_set[0]:
            self._device.set_device_cap(self._before[0])
        try:
            yield
        finally:
            if self._is_set[0]:
                self._device.set_device_cap(cap_bytes)

    def restore(self) -> None:
        """The caps this object set become what they were before."""
        if self._is_set[0]:
            self._device.set_device_cap(self._before[0])
        if self._is_set[1]:
            self._device.set_host_cap(self._before[1])
        self._is_set = [False, False]


_EVAL_TILE_TOKENS = 1024
_BUCKETS_OF_OCTAVE = 8
_POSITION_TABLES = ("max_position_embeddings", "n_positions", "max_seq_len")
_TOO_LONG = (UnsupportedModel, torch.OutOfMemoryError)
"""What a profile's run ends in beyond a model's longest sequence, and where memory is short."""


_LEAST_PROFILED_TOKENS = 16
"""Of a profile in memory that is too short for a longer one: sixteen tiles of one token."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user asked of `wrap`; None leaves a choice to the planner."""

    limits: Limits
    alpha: float | None
    tile_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A plan and what the runtime makes of it."""

    shape: Shape
    plan: Plan
    step: StepPolicy


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A plan, and whether what pre saved is parked on the host under it."""

    plan: Plan
    park_pre: bool


@dataclass(frozen=True, kw_only=True)
class _ProfileKind:
    """Of which steps: with pre's tensors parked, with a mask, of one sequence or of several."""

    park_pre: bool
    masked: bool
    alone: bool


class StepPlanner:
    """Gives the runtime its policy at the start of each step; profiles and plans when needed.

    Where no plan fits, one is made with pre's saved tensors parked on the host while attention's
    backward runs: two more copies for less memory at the step's peak.
    """

    def __init__(
        self, wrapped: WrappedModel, choices: Choices, caps: Caps, layouts: StepLayouts
    ) -> None:
        self.wrapped = wrapped
        self.caps = caps
        self.layouts = layouts
        self._choices = choices
        self._profiles: dict[Hashable, Profile] = {}
        self._planned: dict[Hashable, PlannedStep] = {}
        self._buckets: dict[Hashable, _Found | None] = {}
        self._most_tokens = LONGEST_PROFILED_TOKENS
        self.last: PlannedStep | None = None

    def step_policy(self, batch: int, tokens: int) -> StepPolicy:
        """The policy of a step of `batch` sequences of `tokens`. Raises: PlanInfeasible."""
        if not torch.is_grad_enabled() or not self.trains:
            return self._without_backward(tokens)
        return self.plan(batch, tokens, exactly=False).step

    @property
    def trains(self) -> bool:
        """Whether the model has anything to train; without it there is nothing to profile."""
        return any(p.requires_grad for p in self.wrapped.parts.causal_lm.parameters())

    @property
    def precision(self) -> str:
        """What a step would compute in now."""
        return precision(self.wrapped.device.torch_device.type)

    def measure(self, *, limited: bool) -> None:
        """Profile the model now, so that no step has to wait for it.

        limited: whether memory may be so short that steps park what pre saves on the host.
        A model that cannot be run so is profiled in its first step, which says why if it must.
        """
        with suppress(*_TOO_LONG, TypeError, AttributeError, KeyError, AssertionError):
            for park_pre in (False, True) if limited else (False,):
                for alone in (True, False):
                    kind = _ProfileKind(park_pre=park_pre, masked=self._masked(1), alone=alone)
                    self._profile(1, kind)

    def plan(self, batch: int, tokens: int, *, exactly: bool = True) -> PlannedStep:
        """The plan of such a step, made at the first call.

        exactly: whether it is made for this very length; else it may be that of its bucket.
        Raises: PlanInfeasible.
        """
        shape = Shape(batch=batch, tokens=tokens, precision=self.precision)
        key = self._key(shape, self._masked(tokens))
        if key not in self._planned:
            found = None if exactly else self._plan_of_bucket(shape)
            found = found or self._make_plan(batch, tokens)
            # Profiling ran steps of its own: whether they had masks is not this step's key.
            self._planned[key] = self.adopt(shape, found.plan, park_pre=found.park_pre)
        self.last = self._planned[key]
        return self.last

    def _key(self, *what: Hashable) -> tuple[Hashable, ...]:
        """Plans hold for the model as it is: its dtypes, attention function, what is trained."""
        return (*what, self.wrapped.fingerprint.state(trains=torch.is_grad_enabled()))

    def adopt(self, shape: Shape, plan: Plan, *, park_pre: bool) -> PlannedStep:
        """Run steps of `shape` by `plan` from now on."""
        step = StepPolicy(
            policy=plan.policy,
            loss_tile_tokens=self.wrapped.parts.loss_tile_tokens(plan.policy.tile_tokens),
            copies=copy_budget(plan, park_pre=park_pre),
            whole_bytes=_whole_bytes(plan),
        )
        self.last = PlannedStep(shape=shape, plan=plan, step=step)
        self._planned[self._key(shape, self._masked(shape.tokens))] = self.last
        return self.last

    def _masked(self, tokens: int) -> bool:
        """Whether a step makes a mask: its call brings one, or a window is shorter than it."""
        config = getattr(self.wrapped.parts.causal_lm, "config", None)
        windows = (getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size"))
        return self.wrapped.masked or any(type(w) is int and tokens >= w for w in windows)

    def _plan_of_bucket(self, shape: Shape) -> _Found | None:
        """The plan of the bucket's longest sequence, for this one; None if that does not fit."""
        longest = _bucket_tokens(shape.tokens)
        if self._choices.alpha is not None or longest == shape.tokens:
            return None
        key = self._key(replace(shape, tokens=longest), self._masked(shape.tokens))
        if key not in self._buckets:
            try:
                self._buckets[key] = self._make_plan(shape.batch, longest)
            except PlanInfeasible:
                self._buckets[key] = None
        found = self._buckets[key]
        return None if found is None else _for_shorter(found, shape.tokens)

    def _make_plan(self, batch: int, tokens: int) -> _Found:
        """Raises: PlanInfeasible."""
        try:
            return self._plan_parked(batch, tokens, park_pre=False)
        except PlanInfeasible:
            return self._plan_parked(batch, tokens, park_pre=True)

    def _plan_parked(self, batch: int, tokens: int, *, park_pre: bool) -> _Found:
        kind = _ProfileKind(park_pre=park_pre, masked=self._masked(tokens), alone=batch == 1)
        profile = self._profile(tokens, kind)
        plan = plan_on_clock(
            profile.for_batch(batch),
            tokens,
            self._choices.limits,
            alpha=self._choices.alpha,
            tile_tokens=self._choices.tile_tokens,
            park_pre=park_pre,
        )
        return _Found(plan=plan, park_pre=park_pre)

    def _profile(self, tokens: int, kind: _ProfileKind) -> Profile:
        """The profile for steps of `tokens` and of any other length.

        Where the model or the memory is too small for a long profile, it is made of shorter runs.
        """
        longest = self._longest_profiled(tokens)
        while True:
            try:
                return self._profile_at(longest, kind)
            except _TOO_LONG as error:
                in_memory = isinstance(error, torch.OutOfMemoryError)
                shorter = longest // 2 if in_memory else min(tokens, longest)
                if shorter == longest or shorter < _LEAST_PROFILED_TOKENS:
                    raise
                longest = shorter
                if in_memory:
                    self._most_tokens = shorter

    def _longest_profiled(self, tokens: int) -> int:
        """Tokens of a profile. A step beyond the model's table shows that it needs none."""
        config = getattr(self.wrapped.parts.causal_lm, "config", None)
        tables = [getattr(config, name, None) for name in _POSITION_TABLES]
        table = min([n for n in tables if type(n) is int], default=LONGEST_PROFILED_TOKENS)
        return min(self._most_tokens, max(table, tokens, 1))

    def _profile_at(self, longest: int, kind: _ProfileKind) -> Profile:
        """The profile from runs of at most `longest` tokens, made on this machine now or before."""
        key = self._key(self.precision, longest, kind)
        if key not in self._profiles:
            kept = KeptProfile.of(self.wrapped, key)
            profile = kept.load(self.wrapped)
            if profile is None:
                # Its length is not the step's, so whether it fits the cap says nothing of the step.
                with self.caps.lifted():
                    profile = self._measure(longest, kind)
                kept.save(profile)
            self._profiles[key] = profile
        return self._profiles[key]

    def _measure(self, longest: int, kind: _ProfileKind) -> Profile:
        if self.wrapped.fingerprint.is_sharded:
            raise UnsupportedModel(
                "the model was not profiled for such a step before fully_shard took its "
                "parameters, and cannot be after; run one before fully_shard"
            )
        one = None if kind.alone else self._profile_at(longest, replace(kind, alone=True))
        causal_lm = self.wrapped.parts.causal_lm
        with without_user_hooks(causal_lm), runnable(causal_lm, "on the short steps that plan it"):
            if one is not None:
                return for_two_sequences(self.wrapped, one, longest)
            return measure_profile(
                self.wrapped, 1, longest, park_pre=kind.park_pre, padded=kind.masked
            )

    def _without_backward(self, tokens: int) -> StepPolicy:
        """Nothing is saved, or nothing but x and o; only the tile size matters."""
        tile_tokens = min(self._choices.tile_tokens or _EVAL_TILE_TOKENS, tokens)
        block = BlockPolicy(
            keep_tiles=0,
            swap_tiles=0,
            recompute_tiles=-(-tokens // tile_tokens),
            x=Place.KEEP,
            o=Place.KEEP,
        )
        blocks = (block,) * len(self.wrapped.parts.blocks)
        policy = Policy(tokens=tokens, tile_tokens=tile_tokens, blocks=blocks)
        none = CopyBudget.same(len(blocks), in_flight_bytes=0, ahead_bytes=0)
        return StepPolicy(policy=policy, loss_tile_tokens=tile_tokens, copies=none)


def _bucket_tokens(tokens: int) -> int:
    """The longest length of the bucket in which `tokens` is, in steps of an eighth of an octave."""
    step = max(1, (1 << (tokens - 1).bit_length()) // (2 * _BUCKETS_OF_OCTAVE))
    return step * math.ceil(tokens / step)


def _for_shorter(found: _Found, tokens: int) -> _Found:
    """The plan of a bucket for a sequence of it. It fits the same limits: it needs no more."""
    plan = found.plan
    policy = plan.policy.shorter(tokens)
    binds = plan.prediction.binds
    shorter = Plan.of(
        profile=plan.profile,
        limits=plan.limits,
        policy=policy,
        prediction=predict(plan.profile, policy, binds),
    )
    return replace(found, plan=shorter)


def _whole_bytes(plan: Plan) -> int:
    """Of the smallest tensor of all tokens that a block makes, with q, k and v as equals."""
    profile = plan.profile
    classes = (
        profile.x_bytes_per_token,
        profile.o_bytes_per_token,
        profile.qkv_bytes_per_token / 3,
    )
    return max(1, int(min(classes) * plan.policy.tokens))
