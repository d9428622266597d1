"""The caps that a wrapped model puts on the device, and takes off again.

Plans the steps of a wrapped model, one plan for each batch, length and precision.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from memo_planner import BlockPolicy, Limits, Place, Plan, PlanInfeasible, Policy, Profile
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
from memo_train.trace import measure_profile


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

    def restore(self) -> None:
        """The caps this object set become what they were before."""
        if self._is_set[0]:
            self._device.set_device_cap(self._before[0])
        if self._is_set[1]:
            self._device.set_host_cap(self._before[1])
        self._is_set = [False, False]


_EVAL_TILE_TOKENS = 1024


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
        self.last: PlannedStep | None = None

    def step_policy(self, batch: int, tokens: int) -> StepPolicy:
        """The policy of a step of `batch` sequences of `tokens`. Raises: PlanInfeasible."""
        if not torch.is_grad_enabled() or not self.trains:
            return self._without_backward(tokens)
        return self.plan(batch, tokens).step

    @property
    def trains(self) -> bool:
        """Whether the model has anything to train; without it there is nothing to profile."""
        return any(p.requires_grad for p in self.wrapped.parts.causal_lm.parameters())

    @property
    def precision(self) -> str:
        """What a step would compute in now."""
        return precision(self.wrapped.device.torch_device.type)

    def plan(self, batch: int, tokens: int) -> PlannedStep:
        """The plan of such a step, made at the first call. Raises: PlanInfeasible."""
        shape = Shape(batch=batch, tokens=tokens, precision=self.precision)
        if self._key(shape) not in self._planned:
            try:
                plan, park_pre = self._make_plan(batch, tokens, park_pre=False), False
            except PlanInfeasible:
                plan, park_pre = self._make_plan(batch, tokens, park_pre=True), True
            self.adopt(shape, plan, park_pre=park_pre)
        self.last = self._planned[self._key(shape)]
        return self.last

    def _key(self, *what: Hashable) -> Hashable:
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
        self._planned[self._key(shape)] = self.last
        return self.last

    def _make_plan(self, batch: int, tokens: int, *, park_pre: bool) -> Plan:
        return plan_on_clock(
            self._profile(batch, tokens, park_pre=park_pre),
            tokens,
            self._choices.limits,
            alpha=self._choices.alpha,
            tile_tokens=self._choices.tile_tokens,
            park_pre=park_pre,
        )

    def _profile(self, batch: int, tokens: int, *, park_pre: bool) -> Profile:
        key = self._key(batch, min(tokens, 2048), park_pre, self.precision)
        if key not in self._profiles:
            self._profiles[key] = self._measure(batch, tokens, park_pre=park_pre)
        return self._profiles[key]

    def _measure(self, batch: int, tokens: int, *, park_pre: bool) -> Profile:
        if self.wrapped.fingerprint.is_sharded:
            raise UnsupportedModel(
                f"no plan was made for {batch} x {tokens:,} tokens before fully_shard took the "
                "parameters, and none can be made after; run a step of that shape, or pass "
                "seq_len to wrap, before fully_shard"
            )
        causal_lm = self.wrapped.parts.causal_lm
        with without_user_hooks(causal_lm), runnable(causal_lm, "on the short steps that plan it"):
            return measure_profile(self.wrapped, batch, tokens, park_pre=park_pre)

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


def _whole_bytes(plan: Plan) -> int:
    """Of the smallest tensor of all tokens that a block makes, with q, k and v as equals."""
    profile = plan.profile
    classes = (
        profile.x_bytes_per_token,
        profile.o_bytes_per_token,
        profile.qkv_bytes_per_token / 3,
    )
    return max(1, int(min(classes) * plan.policy.tokens))
