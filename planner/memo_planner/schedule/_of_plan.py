"""The schedule of a plan by token tiles: what the runtime does in a step, operation by operation.

Source: MEMO §schedule for streams and prefetching; the tiles are this project's (docs/design.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from memo_planner.checks import check_fields, check_int
from memo_planner.codec import encode, hash_of
from memo_planner.plan import Plan
from memo_planner.policy import Policy
from memo_planner.profile import Profile
from memo_planner.schedule._budget import CopyBudget
from memo_planner.schedule._builder import BlockOnHost, ScheduleBuilder
from memo_planner.schedule._schedule import VERSION, Phase, Schedule
from memo_planner.schedule._tiles import BlockSizes, TileBackward, TileForward

STRATEGY = "tiles"


@dataclass(frozen=True, kw_only=True)
class StepRest:
    """What a profile of blocks does not hold, on one rank.

    Attributes:
        loss_s, optimizer_s: seconds of head and loss, and of the optimiser.
        collective_bytes: sent to other ranks per block before and again after attention.
        flops: floating-point operations of the model in the step, for MFU; None: unknown.
    """

    loss_s: float = 0.0
    optimizer_s: float = 0.0
    collective_bytes: int = 0
    flops: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, ("loss_s", "optimizer_s"))
        check_int("StepRest.collective_bytes", self.collective_bytes, 0)
        if self.flops is not None:
            check_fields(self, ("flops",), most=2.0**120)

    @classmethod
    def of(cls, plan: Plan) -> StepRest:
        """What the plan's setting says of one rank's micro step; nothing without one."""
        setting = plan.setting
        if setting is None:
            return cls()
        shares = setting.gpus * setting.micro_steps
        return cls(loss_s=setting.outside_s, flops=setting.step_flops / shares)


def schedule_of(
    plan: Plan, *, budget: CopyBudget | None = None, rest: StepRest | None = None
) -> Schedule:
    """The step that the runtime runs under `plan`; one micro step where its setting has several.

    budget: None takes what the plan leaves free. rest: None takes what its setting says.
    """
    rest = rest or StepRest.of(plan)
    budget = budget or CopyBudget.of(plan)
    parts = {"plan": encode(plan), "budget": asdict(budget), "rest": asdict(rest)}
    return tile_schedule(plan.profile, plan.policy, budget, rest, inputs_hash=hash_of(parts))


def tile_schedule(
    profile: Profile, policy: Policy, budget: CopyBudget, rest: StepRest, *, inputs_hash: str
) -> Schedule:
    """The step of `policy` on blocks of `profile`."""
    build = ScheduleBuilder()
    sizes = BlockSizes.of(profile, policy, park_pre=budget.park_pre)
    build.at(Phase.FORWARD)
    build.compute("embedding", 0.0, alloc_bytes=sizes.x_bytes)
    on_host = []
    for index, block in enumerate(policy.blocks):
        build.allow_in_flight(budget.in_flight_bytes[index])
        on_host.append(TileForward(build, sizes, index, block).run(rest.collective_bytes))
    scratch = sizes.loss_scratch_bytes
    build.at(Phase.LOSS)
    build.compute(
        "loss",
        rest.loss_s,
        alloc_bytes=scratch + sizes.x_bytes,
        free_bytes=scratch + sizes.x_bytes,
    )
    gathered = sizes.qkv_bytes + sizes.o_bytes
    on_host[-1].prefetch(build, budget.ahead_bytes[-1] + gathered, policy.num_tiles)
    for index, block in reversed(list(enumerate(policy.blocks))):
        # Handed to the lambda as a default: a closure would see the last turn's value.
        previous = on_host[index - 1] if index else BlockOnHost()
        backward = TileBackward(build, sizes, index, block, on_host[index])
        backward.run(
            budget,
            rest.collective_bytes,
            lambda limit, host=previous: host.prefetch(build, limit, policy.num_tiles),  # type: ignore[misc]
        )
    build.at(Phase.BACKWARD)
    build.compute("embedding backward", 0.0, free_bytes=sizes.x_bytes)
    build.at(Phase.OPTIMIZER)
    build.compute("optimizer", rest.optimizer_s)
    return Schedule(
        version=VERSION,
        strategy=STRATEGY,
        model=profile.model,
        tokens=policy.tokens,
        state_bytes=profile.state_bytes,
        flops=rest.flops,
        inputs_hash=inputs_hash,
        operations=tuple(build.operations),
    )
