"""Ways to decide a step's policy, side by side on one cost model."""

from memo_planner.strategies._job import (
    SEVERAL,
    Compared,
    Job,
    Margin,
    compare,
    excesses,
    longest_job,
    margins,
    plan_job,
)
from memo_planner.strategies._rank import rank_plan
from memo_planner.strategies._strategy import Strategy, fixed_policies, strategy_named

__all__ = [
    "SEVERAL",
    "Compared",
    "Job",
    "Margin",
    "Strategy",
    "compare",
    "excesses",
    "fixed_policies",
    "longest_job",
    "margins",
    "plan_job",
    "rank_plan",
    "strategy_named",
]
