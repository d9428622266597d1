"""A plan as an ordered list of operations, and a clock to run it on.

schedule = schedule_of(Plan.load("plan.json"))
step = simulate(schedule, Speeds.of_link(plan.profile.link))
step.step_s, step.stall_s_by_cause, step.device.peak_bytes
"""

from memo_planner.schedule._budget import CopyBudget
from memo_planner.schedule._builder import ScheduleBuilder
from memo_planner.schedule._choose import copy_budget, plan_on_clock, plan_with_copies
from memo_planner.schedule._of_plan import StepRest, schedule_of
from memo_planner.schedule._picture import figure_rows, summary, svg_text, timeline_lines
from memo_planner.schedule._schedule import Kind, Operation, Phase, Schedule, Stream
from memo_planner.schedule._simulate import ScheduleDeadlock, simulate
from memo_planner.schedule._simulation import Simulation, Speeds
from memo_planner.schedule._strategies import (
    STRATEGIES,
    strategy_schedule,
)

__all__ = [
    "STRATEGIES",
    "CopyBudget",
    "Kind",
    "Operation",
    "Phase",
    "Schedule",
    "ScheduleBuilder",
    "ScheduleDeadlock",
    "Simulation",
    "Speeds",
    "StepRest",
    "Stream",
    "copy_budget",
    "figure_rows",
    "plan_on_clock",
    "plan_with_copies",
    "schedule_of",
    "simulate",
    "strategy_schedule",
    "summary",
    "svg_text",
    "timeline_lines",
]
