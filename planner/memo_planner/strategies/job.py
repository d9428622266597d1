"""Plans of one job by any strategy, all costed by the same model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memo_planner.errors import InvalidInput, PlanInfeasible
from memo_planner.hardware.efficiency import PAPER, Efficiency
from memo_planner.hardware.machine import Hardware
from memo_planner.length import longest_that, max_tokens
from memo_planner.limits import Limits
from memo_planner.plan import Plan
from memo_planner.policy import MAX_TOKENS, Policy
from memo_planner.prediction import predict
from memo_planner.profile import Profile
from memo_planner.setting import Setting
from memo_planner.solve import make_plan
from memo_planner.strategies.fit import excesses, fits
from memo_planner.strategies.strategy import Strategy, fixed_policies
from memo_planner.workload.analytic import analytic_profile, rank_limits
from memo_planner.workload.speeds import outside_s
from memo_planner.workload.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Job:
    """A workload on a machine. `limits` are of one rank."""

    workload: Workload
    hardware: Hardware
    limits: Limits
    efficiency: Efficiency = PAPER

    @classmethod
    def of(cls, workload: Workload, hardware: Hardware, efficiency: Efficiency = PAPER) -> Job:
        """A job that may use what the machine has."""
        limits = rank_limits(workload, hardware)
        return cls(workload=workload, hardware=hardware, limits=limits, efficiency=efficiency)

    def with_tokens(self, tokens: int) -> Job:
        """The same with sequences of another length."""
        return replace(self, workload=self.workload.with_tokens(tokens))

    def profile(self, strategy: Strategy) -> Profile:
        """The profile of a rank whose blocks run as `strategy` runs them."""
        return analytic_profile(self.workload, self.hardware, self.efficiency, strategy.way)

    def setting(self, strategy: Strategy) -> Setting:
        """What a plan of this job says beside its profile."""
        workload = self.workload
        return Setting(
            strategy=strategy.value,
            hardware=self.hardware.name,
            parallel=workload.parallel.described(),
            gpus=workload.parallel.gpus,
            ranks_on_node=workload.ranks_on_node(self.hardware.gpus_per_node),
            ranks_of_sequence=workload.parallel.ranks_of_sequence,
            micro_steps=workload.micro_steps,
            step_flops=workload.batch * workload.model.step_flops(workload.tokens),
            peak_flops=self.hardware.peak_flops,
            outside_s=outside_s(workload, self.hardware, self.efficiency),
        )


def plan_job(job: Job, strategy: Strategy, *, alpha: float | None = None) -> Plan:
    """The fastest plan that `strategy` has for the job.

    alpha: only policies with this swapped share of the tiles of blocks that are not kept.
    Raises: PlanInfeasible, naming what is short and the longest length that fits.
    """
    tokens, profile, setting = job.workload.tokens, job.profile(strategy), job.setting(strategy)
    if strategy is Strategy.TILES:
        plan = make_plan(profile, tokens, job.limits, alpha=alpha, attention_again=True)
        return Plan.of(
            profile=profile,
            limits=job.limits,
            policy=plan.policy,
            prediction=plan.prediction,
            setting=setting,
        )
    policies = fixed_policies(strategy, tokens, profile.num_blocks)
    if alpha is not None:
        policies = [policy for policy in policies if _swapped_share(policy) == alpha]
        if not policies:
            raise InvalidInput(f"strategy {strategy.value} has no alpha {alpha} at {tokens} tokens")
    fitting = [policy for policy in policies if fits(profile, policy, job.limits)]
    if not fitting:
        raise _infeasible(job, strategy, profile, policies)
    told, policy = min(
        ((predict(profile, policy), policy) for policy in fitting),
        key=lambda pair: pair[0].extra_s,
    )
    return Plan.of(
        profile=profile, limits=job.limits, policy=policy, prediction=told, setting=setting
    )


def longest_job(job: Job, strategy: Strategy) -> int:
    """Longest sequence, in tokens, for which `plan_job` finds a plan; 0 if there is none."""
    profile = job.profile(strategy)
    if strategy is Strategy.TILES:
        return max_tokens(profile, job.limits, attention_again=True)
    return longest_that(lambda tokens: _fits(job, strategy, profile, tokens), MAX_TOKENS)


def _swapped_share(policy: Policy) -> float:
    return policy.blocks[0].swap_tiles / policy.num_tiles


def _fits(job: Job, strategy: Strategy, profile: Profile, tokens: int) -> bool:
    policies = reversed(fixed_policies(strategy, tokens, profile.num_blocks))
    return any(fits(profile, policy, job.limits) for policy in policies)


def _infeasible(
    job: Job, strategy: Strategy, profile: Profile, policies: list[Policy]
) -> PlanInfeasible:
    """What is short for the policy that misses its limits by least."""
    over = [excesses(predict(profile, policy), job.limits) for policy in policies]
    worst = [max(each, key=lambda item: item[2] / item[3]) for each in over]
    what, where, need_bytes, limit_bytes = min(worst, key=lambda item: item[2] / item[3])
    longest = longest_that(lambda n: _fits(job, strategy, profile, n), job.workload.tokens)
    return PlanInfeasible(what, where, need_bytes, limit_bytes, longest)
