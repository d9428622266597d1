"""How far copies to the host fall behind, and the device bytes that this is worth."""

from __future__ import annotations

from dataclasses import replace

from memo_planner.copy_budget import CopyBudget
from memo_planner.plan import Plan
from memo_planner.schedule.of_plan import schedule_of
from memo_planner.schedule.operation import Stream
from memo_planner.schedule.simulate import simulate
from memo_planner.schedule.simulation import Simulation
from memo_planner.schedule.speeds import Speeds

_MARGIN = 2
"""Copies may be so much slower than they were measured before anything waits for memory."""


def copy_budget(plan: Plan, *, park_pre: bool = False) -> CopyBudget:
    """What the plan leaves free, but no more in flight than its copies are seen to need.

    A tensor's memory is planned to be in use for as long as its copy may take. Where far more is
    free than copies need, that would be most of the step.
    """
    budget = CopyBudget.of(plan, park_pre=park_pre)
    step = simulate(schedule_of(plan, budget=budget), Speeds.of_link(plan.profile.link))
    needed = _MARGIN * backlog_bytes(step)
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
