"""Ways to decide a step's policy, side by side on one cost model."""

from memo_planner.strategies.job import Job, longest_job, plan_job
from memo_planner.strategies.strategy import Strategy, fixed_policies, strategy_named

__all__ = ["Job", "Strategy", "fixed_policies", "longest_job", "plan_job", "strategy_named"]
