"""Strategies side by side: one row for each strategy and length."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.errors import PlanInfeasible
from memo_planner.plan import Plan
from memo_planner.strategies.job import Job, plan_job
from memo_planner.strategies.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One strategy at one length: its figures, or what is short.

    Attributes:
        step_s, mfu: of one optimiser step; MFU from 0 to 1.
        device_peak_bytes: of a rank. node_host_bytes: of all ranks of a node.
        short: `device` or `host` where nothing fits, else None; then the figures are None.
        max_tokens: where nothing fits, the longest sequence that does.
    """

    strategy: str
    tokens: int
    step_s: float | None = None
    mfu: float | None = None
    device_peak_bytes: int | None = None
    node_host_bytes: int | None = None
    alpha: float | None = None
    short: str | None = None
    max_tokens: int | None = None


def compare(job: Job, strategies: list[Strategy], lengths: list[int]) -> list[Compared]:
    """Every strategy at every length, on the machine and model of `job`."""
    return [_compared(job.with_tokens(n), each) for each in strategies for n in lengths]


def _compared(job: Job, strategy: Strategy) -> Compared:
    tokens = job.workload.tokens
    try:
        plan = plan_job(job, strategy)
    except PlanInfeasible as error:
        return Compared(
            strategy=strategy.value,
            tokens=tokens,
            short=error.where,
            max_tokens=error.max_tokens,
        )
    return of_plan(plan)


def of_plan(plan: Plan) -> Compared:
    """The row of a plan that has a setting."""
    told, setting = plan.prediction, plan.setting
    assert setting is not None, "a job's plan has a setting"
    return Compared(
        strategy=setting.strategy,
        tokens=plan.policy.tokens,
        step_s=setting.step_s(told),
        mfu=setting.mfu(told),
        device_peak_bytes=told.device_peak_bytes,
        node_host_bytes=told.host_peak_bytes * setting.ranks_on_node,
        alpha=plan.policy.alpha,
    )
