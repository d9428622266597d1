"""Strategies side by side on one cost model (level 2: counts)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memo_planner import Limits, Place, Plan, PlanInfeasible
from memo_planner.errors import InvalidInput
from memo_planner.hardware import machine
from memo_planner.strategies import (
    Job,
    Margin,
    Strategy,
    compare,
    fixed_policies,
    longest_job,
    margins,
    plan_job,
    strategy_named,
)
from memo_planner.workload import MODELS, Parallel, Workload
from tests.planner.checker import tally

K = 1024
GIB = 2**30
FIXED = [each for each in Strategy if each is not Strategy.TILES]


def job(tokens: int = 256 * K, model: str = "7b", **degrees: int) -> Job:
    parallel = Parallel(gpus=8, **(degrees or {"tensor": 4, "context": 2}))
    workload = Workload(model=MODELS[model], tokens=tokens, batch=16, parallel=parallel)
    return Job.of(workload, machine("a800-80g-x8"))


def saved_bytes(plan: Plan) -> float:
    """All that one block saves, per rank."""
    profile, tokens = plan.profile, plan.policy.tokens
    per_token = profile.x_bytes_per_token + profile.o_bytes_per_token
    per_token += profile.attention_bytes_per_token + profile.tile_bytes_per_token
    return per_token * tokens


@pytest.mark.parametrize("strategy", FIXED, ids=lambda each: each.value)
def test_predictions_equal_the_checker(strategy: Strategy) -> None:
    plan = plan_job(job(64 * K), strategy)
    total = tally(plan.profile, plan.policy)
    assert plan.prediction.device_peak_bytes == total.device_bytes
    assert plan.prediction.host_peak_bytes == total.host_bytes
    assert plan.prediction.extra_s == pytest.approx(total.extra_s)


def test_what_the_fixed_strategies_do() -> None:
    none = plan_job(job(64 * K), Strategy.NONE)
    assert none.prediction.extra_s == none.prediction.host_peak_bytes == 0
    swap = plan_job(job(), Strategy.SWAP_ALL)
    assert swap.prediction.recompute_s == 0
    assert swap.prediction.host_peak_bytes == pytest.approx(30 * saved_bytes(swap), rel=1e-6)
    checkpoint = plan_job(job(), Strategy.CHECKPOINT)
    offload = plan_job(job(), Strategy.CHECKPOINT_OFFLOAD)
    x_bytes = checkpoint.profile.x_bytes_per_token * 256 * K
    assert checkpoint.prediction.host_peak_bytes == 0
    assert checkpoint.prediction.recompute_s == pytest.approx(checkpoint.prediction.step_forward_s)
    assert offload.prediction.host_peak_bytes == 32 * x_bytes
    moved = checkpoint.prediction.device_peak_bytes - offload.prediction.device_peak_bytes
    assert moved == 32 * x_bytes


def test_the_papers_policy_is_one_alpha_in_eighths_with_the_last_two_blocks_kept() -> None:
    plan = plan_job(job(192 * K), Strategy.MEMO_PAPER)
    first, *_, last = plan.policy.blocks
    assert plan.policy.num_tiles == 8
    assert set(plan.policy.blocks[:30]) == {first}
    assert set(plan.policy.blocks[30:]) == {last}
    assert (first.keep_tiles, first.x, first.o) == (0, Place.SWAP, Place.SWAP)
    assert (last.keep_tiles, last.x, last.o) == (8, Place.KEEP, Place.KEEP)


@pytest.mark.parametrize("eighths", range(9))
def test_the_papers_alpha_is_the_fastest_of_nine(eighths: int) -> None:
    best = plan_job(job(192 * K), Strategy.MEMO_PAPER)
    other = plan_job(job(192 * K), Strategy.MEMO_PAPER, alpha=eighths / 8)
    assert best.prediction.extra_s <= other.prediction.extra_s
    with pytest.raises(InvalidInput, match=r"no alpha 0\.3"):
        plan_job(job(192 * K), Strategy.MEMO_PAPER, alpha=0.3)


@pytest.mark.parametrize("tokens", [1, 2, 7, 9])
@pytest.mark.parametrize("strategy", list(Strategy), ids=lambda each: each.value)
def test_short_sequences_have_plans_too(strategy: Strategy, tokens: int) -> None:
    plan = plan_job(job(tokens), strategy)
    assert plan.policy.tokens == 8 * -(-tokens // 8), "tensor 4 x context 2 ranks, equal parts"
    assert plan.setting is not None
    assert 0 < plan.setting.mfu(plan.prediction) < 1


def test_mfu_is_flops_over_time_and_peak() -> None:
    plan = plan_job(job(64 * K), Strategy.NONE)
    setting, told = plan.setting, plan.prediction
    assert setting is not None
    model = MODELS["7b"]
    blocks_s = told.step_forward_s + told.step_backward_s
    step_s = 16 * (blocks_s + setting.outside_s)
    expected = 16 * model.step_flops(64 * K) / step_s / (8 * 312e12)
    assert setting.mfu(told) == pytest.approx(expected)


@pytest.mark.parametrize("strategy", list(Strategy), ids=lambda each: each.value)
def test_the_longest_length_fits_and_the_next_does_not(strategy: Strategy) -> None:
    asked = job(sequence=8, zero_stage=3)
    longest = longest_job(asked, strategy)
    assert plan_job(asked.with_tokens(longest), strategy).policy.tokens == longest
    with pytest.raises(PlanInfeasible) as refusal:
        plan_job(asked.with_tokens(longest + 1), strategy)
    assert refusal.value.max_tokens == longest
    assert refusal.value.need_bytes > refusal.value.limit_bytes


def test_tiles_reach_lengths_that_no_other_strategy_does() -> None:
    asked = job(sequence=8, zero_stage=3)
    longest = {each: longest_job(asked, each) for each in Strategy}
    assert longest[Strategy.TILES] > 1.5 * max(longest[each] for each in FIXED)


def margins_of(asked: Job, strategy: Strategy) -> dict[str, Margin]:
    return {each.limit: each for each in margins(asked, strategy, plan_job(asked, strategy))}


def test_one_more_gib_is_worth_what_planning_with_it_gives() -> None:
    asked = job(384 * K, sequence=8, zero_stage=3)
    asked = replace(asked, limits=Limits(device_bytes=40 * GIB, host_bytes=20 * GIB))
    by_limit = margins_of(asked, Strategy.CHECKPOINT)
    more = replace(asked, limits=Limits(device_bytes=41 * GIB, host_bytes=20 * GIB))
    gained = longest_job(more, Strategy.CHECKPOINT) - longest_job(asked, Strategy.CHECKPOINT)
    assert by_limit["device"].more_tokens == gained > 0
    assert (by_limit["host"].more_tokens, by_limit["host"].saved_s) == (0, 0.0)


def test_more_memory_of_a_limit_that_binds_saves_time() -> None:
    asked = job(384 * K, sequence=8, zero_stage=3)
    asked = replace(asked, limits=Limits(device_bytes=24 * GIB, host_bytes=30 * GIB))
    assert set(plan_job(asked, Strategy.TILES).prediction.binds) == {"device", "host"}
    for each in margins_of(asked, Strategy.TILES).values():
        assert each.saved_s_by_several > 0
        assert each.saved_s <= each.saved_s_by_several


def test_compare_has_figures_or_what_is_short() -> None:
    rows = compare(job(), [Strategy.SWAP_ALL, Strategy.NONE], [64 * K, 512 * K])
    assert [(row.strategy, row.tokens) for row in rows] == [
        ("swap-all", 64 * K),
        ("swap-all", 512 * K),
        ("none", 64 * K),
        ("none", 512 * K),
    ]
    assert [row.short for row in rows] == [None, "host", None, "device"]
    assert rows[0].mfu is not None
    assert rows[1].mfu is None
    assert rows[1].max_tokens is not None


def test_names() -> None:
    assert [strategy_named(each.value) for each in Strategy] == list(Strategy)
    with pytest.raises(InvalidInput, match="known: tiles, memo-paper"):
        strategy_named("fastest")


def test_one_block_has_policies_too() -> None:
    for strategy in FIXED:
        assert all(len(policy.blocks) == 1 for policy in fixed_policies(strategy, 9, 1))


@pytest.mark.parametrize("strategy", list(Strategy), ids=lambda each: each.value)
def test_a_length_that_ranks_do_not_divide_is_planned_with_its_padding(strategy: Strategy) -> None:
    plan = plan_job(job(100_001, sequence=8, zero_stage=3), strategy)
    assert plan.policy.tokens == 100_008
    assert plan.setting is not None
    assert "100,001 tokens padded to 100,008" in plan.setting.parallel
    assert plan.setting.step_flops == 16 * MODELS["7b"].step_flops(100_001)


def test_no_sequence_is_longer_than_the_table_of_positions() -> None:
    asked = job(1024, sequence=8, zero_stage=3)
    limited = replace(asked.workload, model=replace(MODELS["7b"], max_tokens=2048))
    assert longest_job(replace(asked, workload=limited), Strategy.TILES) == 2048
