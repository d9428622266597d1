"""What more of each memory would buy: found by planning again with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memo_planner.limits import Limits
from memo_planner.plan import Plan
from memo_planner.strategies.job import Job, longest_job, plan_job
from memo_planner.strategies.strategy import Strategy

GIB = 2**30
SEVERAL = 8
"""Tiles are coarse: where one GiB is less than a tile of a block, this many show the slope."""


@dataclass(frozen=True, kw_only=True)
class Margin:
    """One limit, and what more of it changes.

    Attributes:
        limit: `device` (of every rank) or `host` (of every node, shared by its ranks).
        saved_s: seconds less of one optimiser step with one GiB more, at the same length.
        saved_s_by_several: the same with `SEVERAL` GiB more.
        more_tokens: tokens by which the longest sequence that fits grows with one GiB more.
    """

    limit: str
    saved_s: float
    saved_s_by_several: float
    more_tokens: int


def margins(job: Job, strategy: Strategy, plan: Plan) -> tuple[Margin, ...]:
    """For each limit there is, what more of it buys `plan`, which is the job's."""
    longest = longest_job(job, strategy)

    def saved_s(limit: str, num_gib: int) -> float:
        faster = plan_job(_with_more(job, limit, num_gib), strategy)
        return max(0.0, _step_s(plan) - _step_s(faster))

    return tuple(
        Margin(
            limit=limit,
            saved_s=saved_s(limit, 1),
            saved_s_by_several=saved_s(limit, SEVERAL),
            more_tokens=longest_job(_with_more(job, limit, 1), strategy) - longest,
        )
        for limit in ("device", "host")
        if getattr(job.limits, f"{limit}_bytes") is not None
    )


def _step_s(plan: Plan) -> float:
    assert plan.setting is not None, "a job's plan has a setting"
    return plan.setting.step_s(plan.prediction)


def _with_more(job: Job, limit: str, num_gib: int) -> Job:
    """The job with so many GiB more for each rank's device, or for a node's host memory."""
    name = f"{limit}_bytes"
    ranks = job.workload.ranks_on_node(job.hardware.gpus_per_node) if limit == "host" else 1
    now_bytes = getattr(job.limits, name)
    limits: Limits = replace(job.limits, **{name: now_bytes + num_gib * GIB // ranks})
    return replace(job, limits=limits)
