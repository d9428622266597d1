"""The integer programme: from a profile and limits to the fastest policy that fits."""

from memo_planner.programme._cost import BlockShape, Choices, price
from memo_planner.programme._feasible import highest_point
from memo_planner.programme._prediction import StepPoint, predict, shape_of, step_points
from memo_planner.programme._solve import longest_that, make_plan, max_tokens, quick_plan

__all__ = [
    "BlockShape",
    "Choices",
    "StepPoint",
    "highest_point",
    "longest_that",
    "make_plan",
    "max_tokens",
    "predict",
    "price",
    "quick_plan",
    "shape_of",
    "step_points",
]
