"""Plans the steps of a wrapped model.

From the profiles of `memo_train.profiling` every batch and length is planned. Of lengths that
nobody asked for ahead, all of a bucket (an eighth of an octave) go by the plan of its longest until
their own is found in the background.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from memo_planner import BlockPolicy, Limits, Place, Plan, PlanInfeasible, Policy, Profile
from memo_planner.background import BackgroundCall
from memo_planner.programme import predict, quick_plan
from memo_planner.schedule import CopyBudget, copy_budget, plan_on_clock, plan_with_copies
from memo_train.caps import Caps
from memo_train.layout import Shape, StepLayouts
from memo_train.parallel import HeldState, ModelState, SequenceGroup
from memo_train.profiling import Profiles, StepKind
from memo_train.runtime import StepPolicy, WrappedModel, precision
from memo_train.trace import measure_link

_EVAL_TILE_TOKENS = 1024
# So a bucket's longest sequence is at most an eighth longer than one in it.
_BUCKETS_OF_OCTAVE = 8
_MOST_SOUGHT = 8
"""Plans sought in the background at a time; a shape that comes again asks again."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user asked of `wrap`; None leaves a choice to the planner.

    state: who looks after the model's state, over how many ranks.
    """

    limits: Limits
    alpha: float | None
    tile_tokens: int | None
    state: ModelState


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A plan and what the runtime makes of it."""

    shape: Shape
    plan: Plan
    step: StepPolicy


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A plan, what copies may use under it, and whether it is the best for its very length."""

    plan: Plan
    copies: CopyBudget
    is_exact: bool

    @property
    def may_be_improved(self) -> bool:
        """Whether a plan for the very length, in tiles of the same size, could be faster."""
        blocks = self.plan.policy.blocks
        return not self.is_exact and any(b.recompute_tiles or b.swaps for b in blocks)


@dataclass(frozen=True, kw_only=True)
class _Saving:
    """What a plan does to save memory at the step's peak, at the cost of more copies.

    park_pre: as in `CopyBudget`. num_groups: of heads, as in `Policy`. again: whether attention may
    run again in backward, where o fits nowhere.
    """

    park_pre: bool = False
    num_groups: int = 1
    again: bool = False

    @classmethod
    def of(cls, step: StepPolicy) -> _Saving:
        """What a step's plan does of it."""
        park_pre, policy = step.copies.park_pre, step.policy
        again = any(block.o is Place.RECOMPUTE for block in policy.blocks)
        return cls(park_pre=park_pre, num_groups=policy.num_groups, again=again)


@dataclass(frozen=True, kw_only=True)
class _Sought:
    """The own plan of a shape, under way. later: what to plan with if none without that fits."""

    shape: Shape
    call: BackgroundCall[tuple[Plan, CopyBudget]]
    later: tuple[tuple[Profile, _Saving], ...]


class StepPlanner:
    """Gives the runtime its policy at the start of each step, from profiles made at `wrap`.

    Where no plan fits, one is made with pre's saved tensors parked on the host while attention's
    backward runs: two more copies for less memory at the step's peak. Where none of these fits,
    attention runs by groups of heads too, and all that it gets and gives lies on the host. Where it
    is the host's memory that all of these are short of, attention may run again in backward.

    A length that nobody asked for ahead goes by a plan that is made quickly, for the longest of its
    bucket. Its own is sought in the background, in tiles of the same size: so when it comes changes
    what is kept and swapped, and not one bit of what is computed.
    """

    def __init__(
        self,
        wrapped: WrappedModel,
        choices: Choices,
        caps: Caps,
        layouts: StepLayouts,
        group: SequenceGroup | None = None,
    ) -> None:
        """group: the ranks that share the steps; their first one profiles and plans for all."""
        self._group = group
        self.wrapped = wrapped
        self.caps = caps
        self.layouts = layouts
        self._choices = choices
        self._profiles = Profiles(wrapped, caps.lifted)
        self._planned: dict[Hashable, PlannedStep] = {}
        self._improvable: set[Hashable] = set()
        self._sought: dict[Hashable, _Sought] = {}
        self._buckets: dict[Hashable, _Found | None] = {}
        self._held: dict[Hashable, HeldState] = {}
        self.held()  # counted while parameters are whole, which ZeRO 3 does not leave them
        self.last: PlannedStep | None = None
        self.trained_shapes: Counter[tuple[int, int]] = Counter()
        """Training steps begun, by (batch, tokens); whoever reads it may clear it."""

    def step_policy(self, batch: int, tokens: int) -> StepPolicy:
        """The policy of a step of `batch` sequences of `tokens`. Raises: PlanInfeasible."""
        if not torch.is_grad_enabled() or not self.trains:
            return self._without_backward(tokens)
        step = self.plan(batch, tokens, exactly=False).step
        self.trained_shapes[batch, tokens] += 1
        return step

    @property
    def trains(self) -> bool:
        """Whether the model has anything to train; without it there is nothing to profile."""
        return any(p.requires_grad for p in self.wrapped.parts.causal_lm.parameters())

    @property
    def precision(self) -> str:
        """What a step would compute in now."""
        return precision(self.wrapped.device.torch_device.type)

    def agree(self, look: Callable[[], tuple[dict[str, Any], Any]]) -> None:
        """Do `look` on all ranks that share the steps; as `SequenceGroup.agree`."""
        if self._group is None:
            look()
        else:
            self._group.agree(look)

    @property
    def limits(self) -> Limits:
        """What a plan may use on this rank."""
        return self._choices.limits

    @property
    def state(self) -> ModelState:
        """Who looks after the model's state, over how many ranks."""
        return self._choices.state

    def held(self) -> HeldState | None:
        """What this rank holds of the model's state; None where it is all of it."""
        if self.state.kind == "whole":
            return None
        key = self.wrapped.fingerprint.state(trains=False)
        if key not in self._held:
            self._held[key] = HeldState.of(self.wrapped.parts, self.state)
        return self._held[key]

    def measure_links(self) -> None:
        """Measure copies and exchanges while all ranks have them. A collective call.

        Raises: what copies raise on this rank; RanksDiffer if they do on another.
        """
        group, ranks, device = self._group, self.wrapped.ranks, self.wrapped.device
        assert group is not None
        assert ranks is not None
        # Alone first: a rank that cannot copy must not leave others waiting.
        group.agree(lambda: ({}, measure_link(device)))
        self._profiles.link = measure_link(device, group.group)
        ranks.measure_link()

    def measure(self, *, limited: bool) -> None:
        """Profile the model now, so that no step has to wait for it; as `Profiles.measure`."""
        most_groups = max(saving.num_groups for saving in self._savings())
        measure = partial(self._profiles.measure, limited=limited, num_groups=most_groups)
        if self._group is None:
            measure()
        else:
            self._group.decide(measure)

    def plan(self, batch: int, tokens: int, *, exactly: bool = True) -> PlannedStep:
        """The plan of such a step, made at the first call.

        exactly: whether it is made for this very length; else it may be that of its bucket, until
        a later call finds that its own was found in the background.
        Raises: PlanInfeasible.
        """
        shape = Shape(batch=batch, tokens=tokens, precision=self.precision)
        key = self._key(shape, self._masked(tokens))
        if self._group is not None:
            return self._plan_together(self._group, key, shape)
        self._take_found()
        if key not in self._planned:
            found = self._make_plan(shape) if exactly else self._quick_plan(shape)
            self._adopt(key, shape, found.plan, found.copies)
            if found.may_be_improved:
                self._improvable.add(key)
        if key in self._improvable and len(self._sought) < _MOST_SOUGHT:
            self._improvable.remove(key)
            self._seek(key, shape)
        self.last = self._planned[key]
        return self.last

    def _plan_together(self, group: SequenceGroup, key: Hashable, shape: Shape) -> PlannedStep:
        """The plan that all ranks have of a step, or else the first one's. A collective call.

        It is made for the very length and stays: no rank looks for a better one by itself.
        Raises: PlanInfeasible; RanksDiffer.
        """

        def own() -> tuple[Plan, CopyBudget]:
            known = self._planned.get(key)
            if known is not None:
                return known.plan, known.step.copies
            found = self._make_plan(shape)
            return found.plan, found.copies

        def look() -> tuple[dict[str, str], bool]:
            known = self._planned.get(key)
            return ({} if known is None else {"the plan": _named(known.plan)}), known is not None

        if all(group.agree(look)):
            self.last = self._planned[key]
            return self.last
        try:
            decided = group.decide(own)
        except PlanInfeasible as error:
            raise _of_whole_sequences(error, group.size) from error
        self.last = self._adopt(key, shape, *decided)
        return self.last

    def measured(self) -> dict[str, Any] | None:
        """What steps are planned from, as JSON types for `adopt_measured`; None before any."""
        return self._profiles.export()

    def adopt_measured(self, document: dict[str, Any]) -> bool:
        """Plan from what another process measured, from the next step on.

        Whether it was of this model on this machine; if not, nothing changes. Plans made of the
        same figures under the same limits are the same, so steps go in the same tiles.
        Raises: InvalidInput.
        """
        if not self._profiles.adopt(document):
            return False
        for kept in (self._planned, self._buckets, self._sought, self._improvable):
            kept.clear()
        return True

    def wait(self) -> None:
        """Wait for the plans that are sought in the background; later steps go by them."""
        while self._sought:
            self._take_found(wait=True)

    def adopt(self, shape: Shape, plan: Plan, *, park_pre: bool) -> PlannedStep:
        """Run steps of `shape` by `plan` from now on."""
        key = self._key(shape, self._masked(shape.tokens))
        self._sought.pop(key, None)
        self._improvable.discard(key)
        self.last = self._adopt(key, shape, plan, copy_budget(plan, park_pre=park_pre))
        return self.last

    def _adopt(self, key: Hashable, shape: Shape, plan: Plan, copies: CopyBudget) -> PlannedStep:
        step = StepPolicy(
            policy=plan.policy,
            loss_tile_tokens=self.wrapped.parts.loss_tile_tokens(plan.policy.tile_tokens),
            copies=copies,
            whole_bytes=_whole_bytes(plan),
        )
        self.wrapped.device.reserve_host(_host_bytes(plan, park_pre=copies.park_pre))
        self._planned[key] = PlannedStep(shape=shape, plan=plan, step=step)
        return self._planned[key]

    def _key(self, *what: Hashable) -> tuple[Hashable, ...]:
        """Plans hold for the model as it is: its dtypes, attention function, what is trained."""
        return (*what, self.wrapped.fingerprint.state(trains=torch.is_grad_enabled()))

    def _masked(self, tokens: int) -> bool:
        """Whether a step makes a mask: its call brings one, or a window is shorter than it."""
        config = getattr(self.wrapped.parts.causal_lm, "config", None)
        windows = (getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size"))
        return self.wrapped.masked or any(type(w) is int and tokens >= w for w in windows)

    def _seek(self, key: Hashable, shape: Shape) -> None:
        """Look for the shape's own plan, which saves memory by no more than it does so now."""
        step = self._planned[key].step
        now, savings = _Saving.of(step), self._savings()
        first, *later = [
            (self._profile(shape, each), each) for each in savings[: savings.index(now) + 1]
        ]
        call = self._call(key, *first)
        self._sought[key] = _Sought(shape=shape, call=call, later=tuple(later))

    def _savings(self) -> tuple[_Saving, ...]:
        """Ways to save memory, one after the other tried until a plan fits."""
        found: tuple[_Saving, ...] = (_Saving(), _Saving(park_pre=True))
        # Ranks that share a sequence exchange all heads at once; tiles are not swapped by groups.
        whole = self._group is not None or bool(self._choices.alpha)
        groups = 1 if whole else self.wrapped.num_groups
        if groups > 1:
            found = (*found, _Saving(park_pre=True, num_groups=groups))
        # Last: it costs time, and saves no device memory. A mixer is no attention.
        host_is_short = self._choices.limits.host_bytes is not None and self._group is None
        mixers = any(verdict.mixer is not None for verdict in self.wrapped.verdicts)
        again = host_is_short and self._choices.alpha is None and not mixers
        return (*found, *(replace(saving, again=True) for saving in found if again))

    def _call(
        self, key: Hashable, profile: Profile, saving: _Saving
    ) -> BackgroundCall[tuple[Plan, CopyBudget]]:
        policy = self._planned[key].plan.policy
        return BackgroundCall(
            plan_with_copies,
            profile,
            policy.tokens,
            self._limits(profile, policy.tokens, saving),
            tile_tokens=policy.tile_tokens,
            park_pre=saving.park_pre,
            attention_again=saving.again,
        )

    def _take_found(self, *, wait: bool = False) -> None:
        """Let later steps go by plans that have been found since; `wait` for those under way."""
        for key, sought in list(self._sought.items()):
            if not (wait or sought.call.done()):
                continue
            del self._sought[key]
            try:
                plan, copies = sought.call.result()
            except PlanInfeasible:
                if sought.later:
                    (first, *later) = sought.later
                    call = self._call(key, *first)
                    self._sought[key] = replace(sought, call=call, later=tuple(later))
            except Exception as error:
                shape = sought.shape
                warnings.warn(
                    f"steps of {shape.batch} x {shape.tokens:,} tokens go on by the plan of longer "
                    f"ones: to plan them failed with {type(error).__name__}: {error}",
                    stacklevel=2,
                )
            else:
                self._adopt(key, sought.shape, plan, copies)

    def _quick_plan(self, shape: Shape) -> _Found:
        """The plan of the bucket's longest sequence, or if that does not fit one of its own."""
        longest = _bucket_tokens(shape.tokens)
        # An alpha set by hand needs no solver, and a shorter plan's alpha would be another.
        if self._choices.alpha is not None:
            return self._make_plan(shape)
        key = self._key(replace(shape, tokens=longest), self._masked(shape.tokens))
        if key not in self._buckets:
            try:
                self._buckets[key] = self._make_plan(replace(shape, tokens=longest), quickly=True)
            except PlanInfeasible:
                self._buckets[key] = None
        found = self._buckets[key]
        if found is None:
            return self._make_plan(shape, quickly=True)
        # Of all lengths of the bucket, so that none pins anew.
        host_bytes = _host_bytes(found.plan, park_pre=found.copies.park_pre)
        self.wrapped.device.reserve_host(host_bytes)
        return found if longest == shape.tokens else _for_shorter(found, shape.tokens)

    def _make_plan(self, shape: Shape, *, quickly: bool = False) -> _Found:
        """Raises: PlanInfeasible."""
        refusals = []
        for saving in self._savings():
            try:
                return self._plan_by(saving, shape, quickly=quickly)
            except PlanInfeasible as refusal:
                refusals.append(refusal)
        # The one that knows of the longest sequence that fits.
        raise self._with_heads(max(refusals, key=lambda refusal: refusal.max_tokens or 0))

    def _with_heads(self, refusal: PlanInfeasible) -> PlanInfeasible:
        """The refusal, and why attention's heads were not run in groups, if they were not."""
        why = self.wrapped.why_no_groups
        if self._group is not None or why is None:
            return refusal
        advice = f"attention runs on all heads at once: {why}"
        return refusal.changed(max_tokens=refusal.max_tokens, advice=advice)

    def _plan_by(self, saving: _Saving, shape: Shape, *, quickly: bool) -> _Found:
        profile, choices = self._profile(shape, saving), self._choices
        make = (
            partial(quick_plan, branches=False)
            if quickly
            else partial(plan_on_clock, park_pre=saving.park_pre)
        )
        plan = make(
            profile,
            shape.tokens,
            self._limits(profile, shape.tokens, saving),
            alpha=choices.alpha,
            tile_tokens=choices.tile_tokens,
            attention_again=saving.again,
        )
        copies = copy_budget(plan, park_pre=saving.park_pre)
        return _Found(plan=plan, copies=copies, is_exact=not quickly)

    def _limits(self, profile: Profile, tokens: int, saving: _Saving) -> Limits:
        """What is left of the limits beside what pre of a block parks on the host."""
        limits = self._choices.limits
        if limits.host_bytes is None:
            return limits
        parked = _parked_bytes(profile, tokens, park_pre=saving.park_pre)
        return replace(limits, host_bytes=max(1, limits.host_bytes - parked))

    def _profile(self, shape: Shape, saving: _Saving) -> Profile:
        kind = StepKind(
            precision=shape.precision,
            park_pre=saving.park_pre,
            num_groups=saving.num_groups,
            masked=self._masked(shape.tokens),
            alone=shape.batch == 1,
        )
        profile = self._profiles.of(kind, shape.tokens).for_batch(shape.batch)
        held = self.held()
        return profile if held is None else held.applied(profile)

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


def _of_whole_sequences(error: PlanInfeasible, num_ranks: int) -> PlanInfeasible:
    """Its longest length as users count it: of all ranks together."""
    longest = None if error.max_tokens is None else error.max_tokens * num_ranks
    return error.changed(max_tokens=longest)


def _named(plan: Plan) -> str:
    """A policy in a few words, which are others for another policy."""
    number = hashlib.sha256(repr(plan.policy).encode()).hexdigest()[:8]
    return f"{plan.policy.tokens:,} tokens in tiles of {plan.policy.tile_tokens:,} ({number})"


def _bucket_tokens(tokens: int) -> int:
    """The longest length of the bucket in which `tokens` is, in steps of an eighth of an octave."""
    # The octave ends at the least power of two that holds `tokens`.
    step = max(1, (1 << (tokens - 1).bit_length()) // (2 * _BUCKETS_OF_OCTAVE))
    return step * math.ceil(tokens / step)


def _for_shorter(found: _Found, tokens: int) -> _Found:
    """The plan of a bucket for a sequence of it. It fits the same limits: it needs no more.

    Its copies may use what the bucket's may: as much is free, and more.
    """
    plan = found.plan
    policy = plan.policy.shorter(tokens)
    binds = plan.prediction.binds
    shorter = Plan.of(
        profile=plan.profile,
        limits=plan.limits,
        policy=policy,
        prediction=predict(plan.profile, policy, binds, plan.limits),
    )
    return replace(found, plan=shorter, is_exact=False)


def _host_bytes(plan: Plan, *, park_pre: bool) -> int:
    """Most bytes on the host at once: what was swapped, and what pre of a block parks beside it."""
    parked = _parked_bytes(plan.profile, plan.policy.tokens, park_pre=park_pre)
    return plan.prediction.host_peak_bytes + parked


def _parked_bytes(profile: Profile, tokens: int, *, park_pre: bool) -> int:
    """What pre of a block parks on the host. By groups of heads the prediction has it."""
    if not park_pre or profile.num_groups > 1:
        return 0
    return math.ceil(profile.pre_bytes_per_token * tokens)


def _whole_bytes(plan: Plan) -> int:
    """Of the smallest tensor of all tokens that a block makes, with q, k and v as equals.

    By groups of heads that is a plane, of k if q has the size of o.
    """
    profile, num_groups = plan.profile, plan.policy.num_groups
    o_bytes, qkv_bytes = profile.o_bytes_per_token, profile.qkv_bytes_per_token
    k_bytes = qkv_bytes / 3 if num_groups == 1 else max(qkv_bytes - o_bytes, 0.0) / 2
    classes = (profile.x_bytes_per_token, o_bytes / num_groups, k_bytes / num_groups)
    # The device refuses 0.
    return max(1, int(min(classes) * plan.policy.tokens))
