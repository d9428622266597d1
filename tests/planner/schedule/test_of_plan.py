"""The schedule of a plan does what the plan says: seconds, bytes, places, order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_planner import BlockPolicy, Limits, Link, Place, Plan, Policy, Profile, make_plan
from memo_planner.programme import predict
from memo_planner.schedule import (
    CopyBudget,
    Kind,
    Phase,
    Simulation,
    Speeds,
    StepRest,
    plan_on_clock,
    schedule_of,
    simulate,
)
from tests.planner.cases import GIB, large_profile, line, small_cases, small_profile
from tests.planner.schedule.random_schedules import speeds

NO_LIMITS = Limits(device_bytes=None, host_bytes=None)
FAST = Speeds(d2h_bytes_per_s=2.0**60, h2d_bytes_per_s=2.0**60, collective_bytes_per_s=2.0**60)


@st.composite
def plans(draw: st.DrawFn, of: Callable[[Profile], Profile] = lambda profile: profile) -> Plan:
    """Any policy whatever of a small case, without limits."""
    profile, tokens, tile_tokens, _ = draw(small_cases())
    profile, num_tiles = of(profile), -(-tokens // tile_tokens)
    blocks = []
    for _ in range(profile.num_blocks):
        swap = draw(st.integers(0, num_tiles))
        recompute = draw(st.integers(0, num_tiles - swap))
        blocks.append(
            BlockPolicy(
                keep_tiles=num_tiles - swap - recompute,
                swap_tiles=swap,
                recompute_tiles=recompute,
                x=draw(st.sampled_from([Place.KEEP, Place.SWAP])),
                o=draw(st.sampled_from(Place)),
            )
        )
    policy = Policy(tokens=tokens, tile_tokens=tile_tokens, blocks=tuple(blocks))
    return Plan.of(
        profile=profile, limits=NO_LIMITS, policy=policy, prediction=predict(profile, policy)
    )


def without_stalls_s(plan: Plan) -> float:
    told = plan.prediction
    return told.step_forward_s + told.step_backward_s - told.stall_s


def budget_of(plan: Plan, **each: Any) -> CopyBudget:
    """The same for every block."""
    return CopyBudget.same(plan.profile.num_blocks, **each)


def at_profile(plan: Plan, **others: object) -> Simulation:
    return simulate(schedule_of(plan, **others), Speeds.of_link(plan.profile.link))


@settings(deadline=None)
@given(plans())
def test_seconds_and_host_bytes_are_those_of_the_prediction(plan: Plan) -> None:
    step = at_profile(plan)
    host_bytes, link = plan.prediction.host_peak_bytes, plan.profile.link
    assert step.compute_s == pytest.approx(without_stalls_s(plan))
    assert step.host.peak_bytes == host_bytes
    least_s = host_bytes / min(link.d2h_bytes_per_s, link.h2d_bytes_per_s)
    assert step.step_s >= least_s * (1 - 1e-9)


def roomy(profile: Profile) -> Profile:
    """Peaks that hold all the tensors of a block, as a measured profile's do."""
    per_token = 4 * profile.x_bytes_per_token + 3 * profile.o_bytes_per_token
    per_token += 3 * profile.tile_bytes_per_token + profile.attention_bytes_per_token
    names = ("forward", "loss", "backward")
    return replace(profile, peaks=tuple(line(name, 10.0, 2.0, per_token) for name in names))


@settings(deadline=None)
@given(plans(roomy))
def test_the_device_peak_is_the_prediction_or_hardly_above(plan: Plan) -> None:
    """What the block after has freed is fetched into, q, k, v and o; it may outlive that stage."""
    step = at_profile(plan, budget=budget_of(plan, in_flight_bytes=0, ahead_bytes=0))
    profile, tokens = plan.profile, plan.policy.tokens
    fetched_bytes = (profile.qkv_bytes_per_token + profile.o_bytes_per_token) * tokens
    if not any(block.swap_tiles for block in plan.policy.blocks):
        fetched_bytes = 0
    rounding_bytes = 3 * profile.num_blocks + 3 * plan.policy.num_tiles
    most_bytes = plan.prediction.device_peak_bytes + fetched_bytes + rounding_bytes
    assert step.device.peak_bytes <= most_bytes


@settings(deadline=None)
@given(plans())
def test_more_room_for_copies_never_costs_time(plan: Plan) -> None:
    none = at_profile(plan, budget=budget_of(plan, in_flight_bytes=0, ahead_bytes=0))
    much = at_profile(plan, budget=budget_of(plan, in_flight_bytes=2**40, ahead_bytes=0))
    assert much.step_s <= none.step_s + 1e-9


def test_parked_tensors_leave_and_come_back() -> None:
    plan = make_plan(small_profile(), 8, NO_LIMITS, alpha=0.0, tile_tokens=2)
    budget = budget_of(plan, in_flight_bytes=2**40, ahead_bytes=2**40, park_pre=True)
    step = at_profile(plan, budget=budget)
    parked = [o for o in step.schedule.operations if o.name == "saved by pre" and o.num_bytes]
    assert Counter(o.kind for o in parked) == {Kind.TO_HOST: 8, Kind.TO_DEVICE: 8}
    assert {o.phase for o in parked} == {Phase.BACKWARD}
    assert step.compute_s == pytest.approx(without_stalls_s(plan))


def test_the_order_of_a_block() -> None:
    plan = make_plan(small_profile(num_blocks=1), 8, NO_LIMITS, alpha=0.5, tile_tokens=4)
    told = [(o.name, o.tile) for o in schedule_of(plan).operations if o.kind is Kind.COMPUTE]
    assert told == [
        ("embedding", None),
        *[("pre", 0), ("pre", 1), ("attention", None), ("post", 0), ("post", 1)],
        ("loss", None),
        *[("recompute", 1), ("post backward", 1), ("post backward", 0)],
        *[("attention backward", None), ("pre backward", 1), ("pre backward", 0)],
        *[("embedding backward", None), ("optimizer", None)],
    ]


def test_what_the_block_needs_is_fetched_before_what_the_one_before_needs() -> None:
    plan = make_plan(small_profile(), 8, NO_LIMITS, alpha=1.0, tile_tokens=2)
    fetched = [o for o in schedule_of(plan).operations if o.kind is Kind.TO_DEVICE]
    own = {"x": 1, "o": 1, "saved by attention": 1, "q, k, v": 4}
    own |= {"saved by pre": 4, "saved by post": 4}
    names = [o.name for o in fetched]
    assert Counter(names[:15]) == own
    assert Counter(names[15:]) == own


def test_attention_runs_again_before_post_where_o_is_not_saved() -> None:
    profile = small_profile(num_blocks=1)
    block = BlockPolicy(
        keep_tiles=0, swap_tiles=1, recompute_tiles=1, x=Place.SWAP, o=Place.RECOMPUTE
    )
    policy = Policy(tokens=8, tile_tokens=4, blocks=(block,))
    prediction = predict(profile, policy)
    plan = Plan.of(profile=profile, limits=NO_LIMITS, policy=policy, prediction=prediction)
    told = [
        (o.name, o.tile)
        for o in schedule_of(plan).operations
        if o.kind is Kind.COMPUTE and o.phase is Phase.BACKWARD
    ]
    assert told == [
        *[("pre again", 1), ("gather", 0), ("attention again", None), ("recompute", 1)],
        *[("post backward", 1), ("post backward", 0), ("attention backward", None)],
        *[("pre backward", 1), ("pre backward", 0), ("embedding backward", None)],
    ]


def test_the_rest_of_the_step_counts() -> None:
    plan = make_plan(small_profile(), 8, NO_LIMITS, tile_tokens=2)
    rest = StepRest(loss_s=7.0, optimizer_s=5.0, collective_bytes=20)
    step = simulate(schedule_of(plan, rest=rest), speeds(collective=10.0))
    # Every block exchanges twice forward and twice backward.
    expected_s = without_stalls_s(plan) + 12.0 + 2 * 4 * 2.0
    assert step.step_s == pytest.approx(expected_s)
    assert step.stall_s_by_cause["collectives"] == pytest.approx(16.0)


def test_a_plan_without_room_for_copies_is_seen_to_stall_and_another_is_chosen() -> None:
    profile = replace(
        roomy(small_profile(num_blocks=6)), link=Link(d2h_bytes_per_s=10.0, h2d_bytes_per_s=10.0)
    )
    swapped, kept = (
        make_plan(profile, 32, NO_LIMITS, alpha=alpha, tile_tokens=2).prediction.device_peak_bytes
        for alpha in (1.0, None)
    )
    limits = Limits(device_bytes=(swapped + kept) // 2, host_bytes=None)
    plain = make_plan(profile, 32, limits, tile_tokens=2)
    chosen = plan_on_clock(profile, 32, limits, tile_tokens=2)
    assert at_profile(plain).stall_s > plain.prediction.stall_s
    assert at_profile(chosen).step_s < at_profile(plain).step_s
    assert chosen.limits == limits
    assert chosen.prediction.device_peak_bytes <= limits.device_bytes


def test_a_long_step_is_simulated_in_well_under_a_second() -> None:
    limits = Limits(device_bytes=60 * GIB, host_bytes=None)
    plan = make_plan(large_profile(num_blocks=48), 64 * 4096, limits, alpha=1.0, tile_tokens=4096)
    schedule = schedule_of(plan)
    assert len(schedule.operations) > 48 * 64 * 8
    started_s = time.process_time()
    step = simulate(schedule, Speeds.of_link(plan.profile.link))
    assert time.process_time() - started_s < 1.0  # 0.07 s
    assert step.compute_s == pytest.approx(without_stalls_s(plan))


def test_the_hash_follows_policy_and_budget() -> None:
    plan = make_plan(small_profile(), 8, NO_LIMITS, alpha=0.5, tile_tokens=2)
    blocks = plan.policy.blocks[::-1]
    policy = Policy(
        tokens=8,
        tile_tokens=2,
        blocks=(replace(blocks[0], swap_tiles=1, recompute_tiles=3), *blocks[1:]),
    )
    other = Plan.of(
        profile=plan.profile,
        limits=plan.limits,
        policy=policy,
        prediction=predict(plan.profile, policy),
    )
    budget = budget_of(plan, in_flight_bytes=1, ahead_bytes=0)
    hashes = {
        schedule_of(plan).inputs_hash,
        schedule_of(other).inputs_hash,
        schedule_of(plan, budget=budget).inputs_hash,
    }
    assert len(hashes) == 3
    assert schedule_of(plan) == schedule_of(plan)
