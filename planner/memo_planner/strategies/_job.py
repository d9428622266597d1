"""Plans of one job by any strategy, compared on one cost model; what more memory would buy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from memo_planner.errors import InvalidInput, PlanInfeasible
from memo_planner.hardware import PAPER, Efficiency, Hardware
from memo_planner.limits import Limits
from memo_planner.plan import Plan, Prediction, Setting
from memo_planner.policy import MAX_TOKENS, Policy
from memo_planner.profile import Profile
from memo_planner.programme import (
    Choices,
    highest_point,
    longest_that,
    make_plan,
    max_tokens,
    predict,
    price,
    shape_of,
)
from memo_planner.strategies._strategy import Strategy, fixed_policies
from memo_planner.workload import Workload, analytic_profile, outside_s, rank_limits

Excess = tuple[str, str, int, int]
"""What is short, where, bytes needed, limit."""


def excesses(told: Prediction, limits: Limits) -> list[Excess]:
    """Every limit that `told` exceeds; none if it fits."""
    pairs = (
        (told.device_peak_point, "device", told.device_peak_bytes, limits.device_bytes),
        ("swapped tensors", "host", told.host_peak_bytes, limits.host_bytes),
    )
    return [
        (what, where, need_bytes, limit_bytes)
        for what, where, need_bytes, limit_bytes in pairs
        if limit_bytes is not None and need_bytes > limit_bytes
    ]


def fits(profile: Profile, policy: Policy, limits: Limits) -> bool:
    """Whether a prediction of `policy` would exceed no limit, without making one.

    All kept bytes are on the device when forward ends, where the step's highest point is.
    """
    shape = shape_of(profile, policy)
    kinds = list(dict.fromkeys(policy.blocks))
    prices = price(shape, Choices.of_blocks(kinds))
    counts = [policy.blocks.count(kind) for kind in kinds]
    kept = sum(n * int(b) for n, b in zip(counts, prices.kept_bytes, strict=True))
    swapped = sum(n * int(b) for n, b in zip(counts, prices.swapped_bytes, strict=True))
    device, host = limits.device_bytes, limits.host_bytes
    if device is not None and highest_point(shape)[1] + kept > device:
        return False
    return host is None or swapped <= host


@dataclass(frozen=True, kw_only=True)
class Job:
    """A workload on a machine. `limits` are of one rank.

    attention_again: whether tiles' plans may run attention again instead of saving o, which
    `memo_train` does not do.
    """

    workload: Workload
    hardware: Hardware
    limits: Limits
    efficiency: Efficiency = PAPER
    attention_again: bool = True

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
            parallel=workload.described(),
            gpus=workload.parallel.gpus,
            ranks_on_node=workload.ranks_on_node(self.hardware.gpus_per_node),
            ranks_of_sequence=workload.parallel.ranks_of_sequence,
            tensor=workload.parallel.tensor,
            context=workload.parallel.context,
            sequence=workload.parallel.sequence,
            zero_stage=workload.parallel.zero_stage,
            parameters=workload.model.parameters,
            micro_steps=workload.micro_steps,
            step_flops=workload.batch * workload.model.step_flops(workload.tokens),
            peak_flops=self.hardware.peak_flops,
            outside_s=outside_s(workload, self.hardware, self.efficiency),
            efficiency=self.efficiency.source_on(self.hardware.name),
        )


def plan_job(job: Job, strategy: Strategy, *, alpha: float | None = None) -> Plan:
    """The fastest plan that `strategy` has for the job, padded to equal parts of all ranks.

    alpha: only policies with this swapped share of the tiles of blocks that are not kept.
    Raises: PlanInfeasible, naming what is short and the longest length that fits.
    """
    profile, setting = job.profile(strategy), job.setting(strategy)
    tokens = job.workload.padded_tokens
    if strategy is Strategy.TILES:
        # Without a setting: the programme knows no machines.
        plan = _tile_plan(job, profile, tokens, alpha)
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
    """Longest sequence, in tokens, for which `plan_job` finds a plan; 0 if there is none.

    Beyond it the next token needs more memory, or the model's table of positions ends.
    """
    profile = job.profile(strategy)
    if strategy is Strategy.TILES:
        longest = max_tokens(profile, job.limits, attention_again=job.attention_again)
    else:
        longest = longest_that(lambda tokens: _fits(job, strategy, profile, tokens), MAX_TOKENS)
    return _usable(job, longest)


def _usable(job: Job, tokens: int) -> int:
    """Of `tokens` that fit with their padding, those that a sequence may have."""
    workload = job.workload
    # Each rank of a sequence holds as many tokens as the others.
    whole = tokens - tokens % workload.parallel.ranks_of_sequence
    rows = workload.model.max_tokens
    return whole if rows is None else min(whole, rows)


def _tile_plan(job: Job, profile: Profile, tokens: int, alpha: float | None) -> Plan:
    """Raises: PlanInfeasible, its longest length one that the job may have."""
    try:
        again = job.attention_again
        return make_plan(profile, tokens, job.limits, alpha=alpha, attention_again=again)
    except PlanInfeasible as error:
        longest = None if error.max_tokens is None else _usable(job, error.max_tokens)
        raise PlanInfeasible(
            error.what, error.where, error.need_bytes, error.limit_bytes, longest
        ) from error


def _swapped_share(policy: Policy) -> float:
    # Blocks that are kept are the last ones, and the others are all alike.
    return policy.blocks[0].swap_tiles / policy.num_tiles


def _fits(job: Job, strategy: Strategy, profile: Profile, tokens: int) -> bool:
    # From alpha 0 up: what needs least host memory is tried first.
    policies = reversed(fixed_policies(strategy, tokens, profile.num_blocks))
    return any(fits(profile, policy, job.limits) for policy in policies)


def _infeasible(
    job: Job, strategy: Strategy, profile: Profile, policies: list[Policy]
) -> PlanInfeasible:
    """What is short for the policy that misses its limits by least."""
    over = [excesses(predict(profile, policy), job.limits) for policy in policies]
    # By factors, as a GiB of the device and one of the host are not the same want.
    worst = [max(each, key=lambda item: item[2] / item[3]) for each in over]
    what, where, need_bytes, limit_bytes = min(worst, key=lambda item: item[2] / item[3])
    # Only shorter lengths: this one has just been refused.
    longest = longest_that(lambda n: _fits(job, strategy, profile, n), job.workload.padded_tokens)
    return PlanInfeasible(what, where, need_bytes, limit_bytes, _usable(job, longest))


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
    tokens = job.workload.padded_tokens
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
        # More memory makes no plan slower; the solver's gap may.
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
