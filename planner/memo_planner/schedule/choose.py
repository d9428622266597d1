"""Plans chosen on the clock: of several that fit, the one whose simulated step is shortest.

The cost model counts a copy as free while it fits the time of the computation beside it. For that
the runtime needs device bytes in which tensors wait for their copies, and a plan that fills the
device with kept tensors leaves none. So plans are also made with part of the device held back.
"""

from __future__ import annotations

from dataclasses import replace

from memo_planner.copy_budget import HOLES_SHARE, CopyBudget
from memo_planner.errors import PlanInfeasible
from memo_planner.limits import Limits
from memo_planner.plan import Plan
from memo_planner.profile import Profile
from memo_planner.schedule.of_plan import schedule_of
from memo_planner.schedule.simulate import simulate
from memo_planner.schedule.speeds import Speeds
from memo_planner.solve import make_plan

HELD_SHARES = (0.0, HOLES_SHARE, HOLES_SHARE + 0.05, HOLES_SHARE + 0.15)
"""Shares of the bytes for activations that are held back for copies, one after another."""


def plan_on_clock(
    profile: Profile,
    tokens: int,
    limits: Limits,
    *,
    alpha: float | None = None,
    tile_tokens: int | None = None,
    park_pre: bool = False,
) -> Plan:
    """`make_plan`, or a plan with room for copies where that is simulated to be faster.

    Its limits are `limits`. park_pre: as in `CopyBudget`. Raises: as `make_plan`.
    """
    best = make_plan(profile, tokens, limits, alpha=alpha, tile_tokens=tile_tokens)
    if limits.device_bytes is None or alpha is not None:
        return best
    best_s = simulated_s(best, park_pre=park_pre)
    for held in HELD_SHARES[1:]:
        room = limits.device_bytes - profile.state_bytes
        less = replace(limits, device_bytes=max(1, limits.device_bytes - int(held * room)))
        try:
            made = make_plan(profile, tokens, less, tile_tokens=tile_tokens)
        except PlanInfeasible:
            break
        plan = Plan.of(
            profile=profile, limits=limits, policy=made.policy, prediction=made.prediction
        )
        seconds = simulated_s(plan, park_pre=park_pre)
        if seconds < best_s:
            best, best_s = plan, seconds
    return best


def simulated_s(plan: Plan, *, park_pre: bool = False) -> float:
    """Seconds of the plan's step on the clock, at the speeds of its profile."""
    schedule = schedule_of(plan, budget=CopyBudget.of(plan, park_pre=park_pre))
    return simulate(schedule, Speeds.of_link(plan.profile.link)).step_s
