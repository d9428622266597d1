"""Strategies that handle a block whole, on the clock."""

from __future__ import annotations

import math

import pytest

from memo_planner import InvalidInput, Limits, make_plan
from memo_planner.schedule import (
    STRATEGIES,
    Speeds,
    simulate,
    strategy_schedule,
)
from memo_planner.schedule._strategies import BlockCosts, BlockwiseStep, block_operations
from tests.planner.cases import small_profile
from tests.planner.schedule.random_schedules import schedule_from, speeds

NO_LIMITS = Limits(device_bytes=None, host_bytes=None)
FAST = Speeds(d2h_bytes_per_s=2.0**60, h2d_bytes_per_s=2.0**60, collective_bytes_per_s=2.0**60)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_computes_what_it_must(name: str) -> None:
    profile, tokens = small_profile(num_blocks=5), 8
    step = simulate(strategy_schedule(name, profile, tokens, alpha=0.5), FAST)
    plain = make_plan(profile, tokens, NO_LIMITS, tile_tokens=tokens).prediction
    forward_s = plain.step_forward_s / 5
    tilewise_s = profile.times.tilewise_s_per_token * tokens
    again_s = {
        "checkpoint": 5 * forward_s,
        "checkpoint-offload": 5 * forward_s,
        "memo-paper": 3 * 0.5 * tilewise_s + 2 * 0.5 * tilewise_s,
    }
    expected_s = plain.step_forward_s + plain.step_backward_s + again_s.get(name, 0.0)
    assert step.compute_s == pytest.approx(expected_s)


def test_strategies_hold_what_they_must() -> None:
    profile, tokens = small_profile(num_blocks=5), 8
    hosts = {
        name: simulate(strategy_schedule(name, profile, tokens, alpha=0.5), FAST).host.peak_bytes
        for name in STRATEGIES
    }
    x, o, others = 16, 32, 15 * 8
    assert hosts == {
        "none": 0,
        "checkpoint": 0,
        "checkpoint-offload": 5 * x,
        "memo-paper": 3 * (x + o + others // 2),
        "swap-all": 3 * (x + o + others),
    }


def test_forward_waits_until_its_rounding_buffer_is_empty() -> None:
    """1 s of forward and 3 s of copies a block: block 2 starts when block 0 has left, at 4 s."""
    block = BlockCosts(forward_s=1.0, backward_s=1.0, swapped_bytes=30)
    last = BlockCosts(forward_s=1.0, backward_s=1.0, kept_bytes=30)
    step = BlockwiseStep(blocks=(block, block, last, last), num_buffers=2)
    done = simulate(schedule_from(block_operations(step), state_bytes=0), speeds(10.0, 15.0))
    starts = {
        o.block: done.starts_s[i]
        for i, o in enumerate(done.schedule.operations)
        if o.name == "forward"
    }
    assert starts == {0: 0.0, 1: 1.0, 2: 4.0, 3: 7.0}
    # Block 1 is asked for when block 2's backward starts, at 9 s, and takes 2 s.
    assert done.step_s == 9 + 2 + 2 + 1
    assert done.device.peak_bytes == 60


@pytest.mark.parametrize(
    ("name", "tokens", "alpha", "message"),
    [
        ("swop", 8, 1.0, "strategy is 'swop'"),
        ("memo-paper", 8, 1.5, "alpha is 1.5"),
        ("memo-paper", 8, math.nan, "alpha is nan"),
        ("none", 0, 1.0, "tokens is 0"),
    ],
)
def test_a_strategy_checks_what_it_is_given(name, tokens, alpha, message) -> None:
    with pytest.raises(InvalidInput, match=message):
        strategy_schedule(name, small_profile(), tokens, alpha=alpha)
