"""Addresses for everything that lives during a step: problems, placements, packers, a validator."""

from memo_planner.layout.packing import DEFAULT_SECONDS, pack
from memo_planner.layout.placement import NoPlacement, Placement
from memo_planner.layout.problem import PackingProblem
from memo_planner.layout.table import read_problem, write_placement
from memo_planner.layout.validate import faults

__all__ = [
    "DEFAULT_SECONDS",
    "NoPlacement",
    "PackingProblem",
    "Placement",
    "faults",
    "pack",
    "read_problem",
    "write_placement",
]
