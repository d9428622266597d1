"""Addresses for everything that lives during a step: problems, placements, packers, a validator."""

from memo_planner.layout._packing import (
    DEFAULT_SECONDS,
    Progress,
    checked_step_layout,
    lay_out_step,
    pack,
    read_step,
    step_problem,
)
from memo_planner.layout._problem import (
    NoPlacement,
    PackingProblem,
    Placement,
    read_problem,
    write_placement,
)
from memo_planner.layout._validate import faults

__all__ = [
    "DEFAULT_SECONDS",
    "NoPlacement",
    "PackingProblem",
    "Placement",
    "Progress",
    "checked_step_layout",
    "faults",
    "lay_out_step",
    "pack",
    "read_problem",
    "read_step",
    "step_problem",
    "write_placement",
]
