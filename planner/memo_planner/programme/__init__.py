"""The integer programme: from a profile and limits to the fastest policy that fits."""

from memo_planner.programme._alive import HOLES_SHARE, NO_LIMIT_BYTES, StepPoint, free_bytes
from memo_planner.programme._cost import BlockShape, Choices, price
from memo_planner.programme._feasible import highest_point
from memo_planner.programme._prediction import peak_points, predict, shape_of, step_points
from memo_planner.programme._solve import longest_that, make_plan, max_tokens, quick_plan

__all__ = [
    "HOLES_SHARE",
    "NO_LIMIT_BYTES",
    "BlockShape",
    "Choices",
    "StepPoint",
    "free_bytes",
    "highest_point",
    "longest_that",
    "make_plan",
    "max_tokens",
    "peak_points",
    "predict",
    "price",
    "quick_plan",
    "shape_of",
    "step_points",
]
