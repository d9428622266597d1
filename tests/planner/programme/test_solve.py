"""The integer programme against exhaustive search and an independent checker (level 2: counts)."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from memo_planner import Limits, Link, Place, Plan, PlanInfeasible, Profile, make_plan
from memo_planner.hardware import machine
from memo_planner.programme._blocks import EQUAL_SHARE, EXACT_TILES
from memo_planner.strategies import Job, Strategy, plan_job
from memo_planner.workload import MODELS, Parallel, Workload
from tests.planner.cases import GIB, large_profile, small_cases, small_profile, with_device
from tests.planner.checker import best_extra_s, fits, tally

Case = tuple[Profile, int, int, Limits]
few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def equal_s(profile: Profile, tokens: int) -> float:
    """Seconds below which the planner counts two plans as equally fast."""
    times = profile.times
    linear = times.pre_s_per_token + times.post_s_per_token
    linear += times.pre_backward_s_per_token + times.post_backward_s_per_token
    square = times.attention_s_per_token2 + times.attention_backward_s_per_token2
    return EQUAL_SHARE * profile.num_blocks * (linear * tokens + square * tokens**2)


@few
@given(small_cases(), st.booleans())
def test_solver_equals_exhaustive_search(case: Case, attention_again: bool) -> None:
    profile, tokens, tile_tokens, limits = case
    best = best_extra_s(profile, tokens, tile_tokens, limits, attention_again)
    options = {"tile_tokens": tile_tokens, "attention_again": attention_again}
    if best is None:
        with pytest.raises(PlanInfeasible):
            make_plan(profile, tokens, limits, **options)
        return
    plan = make_plan(profile, tokens, limits, **options)
    total = tally(profile, plan.policy)
    assert fits(total, limits), (total, limits)
    assert total.extra_s == pytest.approx(best, rel=1e-12, abs=equal_s(profile, tokens))


@few
@given(small_cases())
def test_prediction_equals_the_checker(case: Case) -> None:
    profile, tokens, tile_tokens, limits = case
    try:
        plan = make_plan(profile, tokens, limits, tile_tokens=tile_tokens)
    except PlanInfeasible:
        assume(False)
        raise
    total = tally(profile, plan.policy)
    assert plan.prediction.device_peak_bytes == total.device_bytes
    assert plan.prediction.host_peak_bytes == total.host_bytes
    assert plan.prediction.extra_s == pytest.approx(total.extra_s)


@few
@given(small_cases(), st.sampled_from([0.5, 3.0, 40.0]))
def test_tiles_that_wait_to_be_asked_for_cost_what_the_checker_says(
    case: Case, tile_issue_s: float
) -> None:
    """Level 2. As on a GPU, where no pass over a tile is shorter than the host's part in it."""
    profile, tokens, tile_tokens, limits = case
    profile = replace(profile, times=replace(profile.times, tile_issue_s=tile_issue_s))
    try:
        plan = make_plan(profile, tokens, limits, tile_tokens=tile_tokens)
    except PlanInfeasible:
        assume(False)
        raise
    assert plan.prediction.extra_s == pytest.approx(tally(profile, plan.policy).extra_s)


def test_tiles_are_as_large_as_the_host_needs_to_keep_up() -> None:
    """Where memory allows, no tile takes less than the time in which it is asked for."""
    limits = Limits(device_bytes=60 * GIB, host_bytes=250 * GIB)
    profile = large_profile(tile_overhead_s=0.0)
    times = replace(profile.times, tile_issue_s=2048 * profile.times.tilewise_s_per_token)
    quick = make_plan(profile, 1 << 17, limits)
    slow = make_plan(replace(profile, times=times), 1 << 17, limits)
    assert quick.policy.tile_tokens < 2048 <= slow.policy.tile_tokens


@few
@given(small_cases(), st.integers(1, 2000))
def test_more_device_bytes_never_make_a_plan_slower(case: Case, more_bytes: int) -> None:
    profile, tokens, _, limits = case
    assume(limits.device_bytes is not None)
    try:
        tight = make_plan(profile, tokens, limits)
    except PlanInfeasible:
        assume(False)
        raise
    loose = make_plan(profile, tokens, with_device(limits, more_bytes))
    slack_s = 2 * equal_s(profile, tokens)
    assert loose.prediction.extra_s <= tight.prediction.extra_s + slack_s


@pytest.mark.parametrize("device_gib", [32, 60, 120])
@pytest.mark.parametrize("host_gib", [60, 250])
def test_80_blocks_fit_and_take_seconds(device_gib: int, host_gib: int) -> None:
    profile = large_profile()
    limits = Limits(device_bytes=device_gib * GIB, host_bytes=host_gib * GIB)
    start_s = cpu_s()
    plan = make_plan(profile, 100_001, limits, attention_again=True)
    assert cpu_s() - start_s < 10.0
    assert fits(tally(profile, plan.policy), limits)


@pytest.mark.parametrize("tokens", [512 * 1024, 1024 * 1024, 1408 * 1024])
@pytest.mark.parametrize("host_gib", [500, None])
def test_65b_on_64_devices_takes_seconds(tokens: int, host_gib: int | None) -> None:
    parallel = Parallel(gpus=64, tensor=8, context=8, zero_stage=1)
    workload = Workload(model=MODELS["65b"], tokens=tokens, batch=1, parallel=parallel)
    job = Job.of(workload, machine("a800-80g-x8"))
    if host_gib is not None:
        job = replace(job, limits=replace(job.limits, host_bytes=host_gib * GIB // 8))
    start_s = cpu_s()
    plan = plan_job(job, Strategy.TILES)
    assert cpu_s() - start_s < 10.0
    assert fits(tally(plan.profile, plan.policy), job.limits)


def cpu_s() -> float:
    """CPU seconds of this process and of the solvers it has run: the same on a busy machine."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def test_more_device_memory_is_never_slower_with_80_blocks() -> None:
    profile, tokens = large_profile(), 131_072
    seconds = [
        make_plan(profile, tokens, Limits(device_bytes=gib * GIB, host_bytes=200 * GIB))
        for gib in (36, 50, 64, 90, 150, 400)
    ]
    extra = [plan.prediction.extra_s for plan in seconds]
    slack_s = 2 * equal_s(profile, tokens)
    assert all(later <= earlier + slack_s for earlier, later in pairwise(extra))
    assert extra[-1] < extra[0] / 10


def test_fine_tiles_reach_what_all_block_policies_reach() -> None:
    """Above EXACT_TILES tiles only grids are searched: compare with the exact case below it."""
    profile = large_profile(num_blocks=12, tile_overhead_s=0.0)
    limits = Limits(device_bytes=28 * GIB, host_bytes=25 * GIB)
    tokens = 64 * 1024
    exact = make_plan(profile, tokens, limits, tile_tokens=tokens // EXACT_TILES + 1)
    fine = make_plan(profile, tokens, limits, tile_tokens=tokens // 1024)
    assert exact.policy.num_tiles == EXACT_TILES
    assert fine.policy.num_tiles == 1024
    assert fine.prediction.extra_s <= exact.prediction.extra_s + equal_s(profile, tokens)
    assert fits(tally(profile, fine.policy), limits)


def test_attention_runs_again_only_where_it_may_and_must() -> None:
    """x of both blocks takes 2 * 16 bytes of host memory, o as much again twice over."""
    tight = Limits(device_bytes=1450, host_bytes=2 * 16)
    with pytest.raises(PlanInfeasible):
        two_tiles(tight)
    plan = make_plan(small_profile(), 8, tight, tile_tokens=4, attention_again=True)
    assert [(b.x, b.o) for b in plan.policy.blocks] == [(Place.SWAP, Place.RECOMPUTE)] * 2
    # A second more for each token: pre runs once for attention, and once with post.
    assert plan.prediction.recompute_s == 2 * (8 * 4 + 0.5 * 8**2 + 8 * 1)
    one_o = replace(tight, host_bytes=2 * 16 + 32)
    plan = make_plan(small_profile(), 8, one_o, tile_tokens=4, attention_again=True)
    assert [b.o for b in plan.policy.blocks].count(Place.RECOMPUTE) == 1
    loose = replace(tight, host_bytes=None)
    plan = make_plan(small_profile(), 8, loose, tile_tokens=4, attention_again=True)
    assert Place.RECOMPUTE not in {b.o for b in plan.policy.blocks}


def test_same_request_same_plan() -> None:
    limits = Limits(device_bytes=60 * GIB, host_bytes=150 * GIB)
    assert make_plan(large_profile(), 131_072, limits) == make_plan(
        large_profile(), 131_072, limits
    )


def test_without_limits_everything_is_kept_in_one_tile() -> None:
    plan = make_plan(large_profile(), 131_072, Limits(device_bytes=None, host_bytes=None))
    assert plan.policy.tile_tokens == 131_072
    assert {block.keep_tiles for block in plan.policy.blocks} == {1}
    assert {(block.x, block.o) for block in plan.policy.blocks} == {(Place.KEEP, Place.KEEP)}
    assert plan.prediction.host_peak_bytes == 0
    assert plan.prediction.binds == ()


def test_kept_blocks_come_last() -> None:
    limits = Limits(device_bytes=60 * GIB, host_bytes=None)
    kept = [b.keep_tiles for b in make_plan(large_profile(), 131_072, limits).policy.blocks]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


def two_tiles(limits: Limits, **other: object) -> Plan:
    return make_plan(small_profile(**other), 8, limits, tile_tokens=4)


def test_ties_prefer_keep_to_swap_to_recompute() -> None:
    """Highest point: 1000 + 50 + 30*4 + 35*8 = 1450; keeping all takes 2 * (16 + 32 + 120)."""
    all_kept = 1450 + 2 * (16 + 32 + 120)
    plan = two_tiles(Limits(device_bytes=all_kept, host_bytes=None))
    assert [b.keep_tiles for b in plan.policy.blocks] == [2, 2]
    plan = two_tiles(Limits(device_bytes=all_kept - 1, host_bytes=None))
    assert plan.prediction.recompute_s == 0
    assert plan.policy.blocks[-1].keep_tiles == 2
    assert 0 < plan.prediction.host_peak_bytes <= 16


def test_swap_is_preferred_even_where_recomputing_is_free() -> None:
    free = replace(small_profile().times, pre_s_per_token=0.0, post_s_per_token=0.0)
    plan = two_tiles(Limits(device_bytes=1450, host_bytes=None), times=free)
    assert plan.prediction.extra_s == 0
    assert {block.swap_tiles for block in plan.policy.blocks} == {2}


def test_binds_name_the_limits_that_hold_the_plan_back() -> None:
    slow = Link(d2h_bytes_per_s=1.0, h2d_bytes_per_s=1e6)
    tight = Limits(device_bytes=1450, host_bytes=None)
    assert two_tiles(tight).prediction.binds == ()
    assert two_tiles(tight, link=slow).prediction.binds == ("device", "forward window")
    little = replace(tight, host_bytes=2 * (16 + 32))
    assert two_tiles(little).prediction.binds == ("device", "host")


def test_a_slow_way_back_stalls() -> None:
    """x and o, 48 bytes, come back at 1 B/s while backward takes 4 s and recomputing 8 * 4 s."""
    link = Link(d2h_bytes_per_s=1e6, h2d_bytes_per_s=1.0)
    fast = replace(
        small_profile().times,
        attention_backward_s_per_token2=0.0,
        pre_backward_s_per_token=0.0,
        post_backward_s_per_token=0.5,
    )
    plan = two_tiles(Limits(device_bytes=1450, host_bytes=None), link=link, times=fast)
    assert {block.recompute_tiles for block in plan.policy.blocks} == {2}
    assert plan.prediction.recompute_s == 2 * 32
    assert plan.prediction.stall_s == 2 * (48 - 4 - 32)
    assert plan.prediction.binds == ("device", "backward window")
