"""Plans a training step before it runs: which activation bytes are kept, swapped or recomputed.

Needs numpy and PuLP, never torch, so that a plan can be made and read on any machine.
"""

from memo_planner.errors import InvalidInput, MemoError, PlanFileError, PlanInfeasible, SolverError
from memo_planner.limits import Limits
from memo_planner.plan import Plan, Prediction
from memo_planner.policy import BlockPolicy, Place, Policy, TilePlace
from memo_planner.profile import BlockTimes, Exchange, Link, PeakLine, Profile
from memo_planner.programme import make_plan, max_tokens

__all__ = [
    "BlockPolicy",
    "BlockTimes",
    "Exchange",
    "InvalidInput",
    "Limits",
    "Link",
    "MemoError",
    "PeakLine",
    "Place",
    "Plan",
    "PlanFileError",
    "PlanInfeasible",
    "Policy",
    "Prediction",
    "Profile",
    "SolverError",
    "TilePlace",
    "make_plan",
    "max_tokens",
]
