"""A plan as an ordered list of operations, and a clock to run it on.

schedule = schedule_of(Plan.load("plan.json"))
step = simulate(schedule, Speeds.of_link(plan.profile.link))
step.step_s, step.stall_s_by_cause, step.device.peak_bytes
"""

from memo_planner.schedule.backlog import copy_budget
from memo_planner.schedule.builder import ScheduleBuilder
from memo_planner.schedule.choose import plan_on_clock
from memo_planner.schedule.layers import LayerCosts, LayerStep, layer_operations
from memo_planner.schedule.of_plan import StepRest, schedule_of, tile_schedule
from memo_planner.schedule.operation import Kind, Operation, Phase, Stream
from memo_planner.schedule.order import ScheduleDeadlock
from memo_planner.schedule.schedule import Schedule
from memo_planner.schedule.simulate import simulate
from memo_planner.schedule.simulation import Simulation, Stall
from memo_planner.schedule.speeds import Speeds
from memo_planner.schedule.strategies import STRATEGIES, strategy_schedule

__all__ = [
    "STRATEGIES",
    "Kind",
    "LayerCosts",
    "LayerStep",
    "Operation",
    "Phase",
    "Schedule",
    "ScheduleBuilder",
    "ScheduleDeadlock",
    "Simulation",
    "Speeds",
    "Stall",
    "StepRest",
    "Stream",
    "copy_budget",
    "layer_operations",
    "plan_on_clock",
    "schedule_of",
    "simulate",
    "strategy_schedule",
    "tile_schedule",
]
