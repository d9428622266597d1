"""Plans chosen on the clock: of several that fit, the one whose simulated step is shortest.

The cost model counts a copy as free while it fits the time of the computation beside it. For that
the runtime needs device bytes in which tensors wait for their copies, and a plan that fills the
device with kept tensors leaves none. So plans are also made with part of the device held back: as
much as copies to the host fall behind.
"""

from __future__ import annotations

import math
from dataclasses import replace

from memo_planner.errors import PlanInfeasible
from memo_planner.limits import Limits
from memo_planner.plan import Plan
from memo_planner.profile import Profile
from memo_planner.programme import HOLES_SHARE, make_plan, predict, quick_plan
from memo_planner.schedule._budget import CopyBudget
from memo_planner.schedule._of_plan import StepRest, schedule_of, tile_schedule
from memo_planner.schedule._schedule import Stream
from memo_planner.schedule._simulate import simulate
from memo_planner.schedule._simulation import Simulation, Speeds

_TILES_UNDER_WAY = 2
"""By groups of heads: of q, k and v, on their way to the host."""

_MARGIN = 2
"""Copies may be so much slower than they were measured before anything waits for memory."""

HELD_SHARES = (0.0, HOLES_SHARE, HOLES_SHARE + 0.05, HOLES_SHARE + 0.15)
"""Shares of the bytes for activations that are held back for copies, one after another."""


def copy_budget(plan: Plan, *, park_pre: bool = False) -> CopyBudget:
    """What the plan leaves free, but no more in flight than its copies are seen to need.

    A tensor's memory is planned to be in use for as long as its copy may take. Where far more is
    free than copies need, that would be most of the step.
    """
    budget = CopyBudget.of(plan, park_pre=park_pre)
    if _copies_nothing(plan) and not park_pre:
        return replace(budget, in_flight_bytes=(0,) * len(budget.in_flight_bytes))
    rest, inputs_hash = StepRest.of(plan), plan.inputs_hash
    schedule = tile_schedule(plan.profile, plan.policy, budget, rest, inputs_hash=inputs_hash)
    step = simulate(schedule, Speeds.of_link(plan.profile.link))
    needed = _MARGIN * backlog_bytes(step)
    if plan.policy.num_groups > 1:
        # Of planes, which are few and large, none may stay where the next one would be.
        per_token = plan.profile.qkv_bytes_per_token
        needed = min(needed, math.ceil(_TILES_UNDER_WAY * per_token * plan.policy.tile_tokens))
    in_flight = tuple(min(free, needed) for free in budget.in_flight_bytes)
    return replace(budget, in_flight_bytes=in_flight)


def backlog_bytes(step: Simulation) -> int:
    """Most bytes at once whose copies to the host are asked for and not over."""
    operations = step.schedule.operations
    under_way: list[tuple[float, int]] = []
    most = held = oldest = 0
    for index, one in enumerate(operations):
        if one.stream is not Stream.D2H:
            continue
        asked_s = max((step.ends_s[waited] for waited in one.waits_for), default=0.0)
        while oldest < len(under_way) and under_way[oldest][0] <= asked_s:
            held -= under_way[oldest][1]
            oldest += 1
        under_way.append((step.ends_s[index], one.num_bytes))
        held += one.num_bytes
        most = max(most, held)
    return most


def plan_on_clock(
    profile: Profile,
    tokens: int,
    limits: Limits,
    *,
    alpha: float | None = None,
    tile_tokens: int | None = None,
    park_pre: bool = False,
    attention_again: bool = False,
) -> Plan:
    """`make_plan`, or a plan with room for copies where that is simulated to be faster.

    Its limits are `limits`. park_pre: as in `CopyBudget`. Raises: as `make_plan`.
    """
    best = make_plan(
        profile,
        tokens,
        limits,
        alpha=alpha,
        tile_tokens=tile_tokens,
        attention_again=attention_again,
    )
    if limits.device_bytes is None or alpha is not None or _copies_nothing(best):
        return best
    best_s = simulated_s(best, park_pre=park_pre)
    for held in HELD_SHARES[1:]:
        room = limits.device_bytes - profile.state_bytes
        less = replace(limits, device_bytes=max(1, limits.device_bytes - int(held * room)))
        try:
            made = quick_plan(
                profile, tokens, less, tile_tokens=tile_tokens, attention_again=attention_again
            )
        except PlanInfeasible:
            # With more held back still less fits.
            break
        # With the real limits: what was held back is room that copies may use.
        told = predict(profile, made.policy, best.prediction.binds, limits)
        plan = Plan.of(profile=profile, limits=limits, policy=made.policy, prediction=told)
        seconds = simulated_s(plan, park_pre=park_pre)
        if seconds < best_s:
            best, best_s = plan, seconds
    return best


def plan_with_copies(
    profile: Profile,
    tokens: int,
    limits: Limits,
    *,
    tile_tokens: int | None = None,
    park_pre: bool = False,
    attention_again: bool = False,
) -> tuple[Plan, CopyBudget]:
    """`plan_on_clock` and the `copy_budget` of its plan. Raises: as `make_plan`."""
    plan = plan_on_clock(
        profile,
        tokens,
        limits,
        tile_tokens=tile_tokens,
        park_pre=park_pre,
        attention_again=attention_again,
    )
    return plan, copy_budget(plan, park_pre=park_pre)


def _copies_nothing(plan: Plan) -> bool:
    """Then room for copies cannot make it faster."""
    return not any(block.swaps for block in plan.policy.blocks)


def simulated_s(plan: Plan, *, park_pre: bool = False) -> float:
    """Seconds of the plan's step on the clock, at the speeds of its profile."""
    schedule = schedule_of(plan, budget=CopyBudget.of(plan, park_pre=park_pre))
    return simulate(schedule, Speeds.of_link(plan.profile.link)).step_s
