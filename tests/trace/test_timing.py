"""Seconds of tiles on a device that runs behind the thread that asks it, and plans made of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import transformers

from memo_planner import Limits, Profile
from memo_planner.plan import Plan
from memo_planner.schedule import plan_on_clock
from memo_train.trace._fake_device import Speeds
from memo_train.trace._fake_step import FakeModel
from memo_train.trace._timing import TimedStep, fit_times

GIB = 2**30
H100 = Speeds(
    flops_per_s=990e12,
    matmul_efficiency=0.6,
    attention_efficiency=0.4,
    memory_bytes_per_s=2.8e12,
    d2h_bytes_per_s=50e9,
    h2d_bytes_per_s=50e9,
)
PRE, POST, BACK = 1e-7, 3e-7, 4e-7  # seconds of a token
ATTENTION = 1e-11  # seconds of a pair of tokens
OVERHEAD, ISSUE = 1e-4, 1e-3  # seconds of a pass over a tile
LONG = 1 << 18


def step(tile: int, issue_s: float) -> TimedStep:
    """Four tiles, each pass of which takes its work and overhead, or the time to ask for it."""
    tokens = 4 * tile
    forward = max((PRE + POST) * tile + OVERHEAD, issue_s) * 4
    backward = max(BACK * tile + OVERHEAD, issue_s) * 4
    return TimedStep(
        tokens=tokens,
        tile_tokens=tile,
        seconds={
            "pre": forward * PRE / (PRE + POST),
            "post": forward * POST / (PRE + POST),
            "post_backward": backward / 2 + forward,
            "pre_backward": backward / 2,
            "attention": ATTENTION * tokens**2,
            "attention_backward": 2 * ATTENTION * tokens**2,
        },
    )


def test_the_work_of_a_token_is_read_off_tiles_that_do_not_wait() -> None:
    times = fit_times([step(128 << k, ISSUE) for k in range(8)])
    assert times.tilewise_s_per_token == pytest.approx(PRE + POST, rel=0.01)
    assert times.tile_overhead_s == pytest.approx(OVERHEAD, rel=0.05)
    assert times.tile_issue_s == pytest.approx(ISSUE)
    assert times.attention_s_per_token2 == pytest.approx(ATTENTION)
    assert times.overhead_s(128) == pytest.approx(ISSUE - 128 * (PRE + POST), rel=0.01)
    assert times.overhead_s(16384) == times.tile_overhead_s


def test_tiles_that_never_wait_have_no_time_of_asking() -> None:
    times = fit_times([step(128 << k, 0.0) for k in range(5)])
    assert times.tile_issue_s == 0
    assert times.tile_overhead_s == pytest.approx(OVERHEAD, rel=0.01)


def test_noise_never_makes_a_time_negative() -> None:
    slow = [step(128, ISSUE), step(256, ISSUE), replace(step(512, ISSUE), tile_tokens=512)]
    slow[1] = replace(slow[1], seconds={k: 3 * v for k, v in slow[1].seconds.items()})
    for steps in (slow, slow[:2], slow[:1], [replace(slow[0], seconds={})]):
        times = fit_times(steps)
        assert all(getattr(times, name) >= 0 for name in times.__dataclass_fields__)


@cache
def profile_of(op_issue_s: float) -> Profile:
    """Of a model of a billion parameters on an H100 that takes so long to ask."""
    config = transformers.LlamaConfig(
        vocab_size=32768,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=2**20,
        use_cache=False,
    )

    def make() -> torch.nn.Module:
        model: torch.nn.Module = transformers.LlamaForCausalLM._from_config(
            config, dtype=torch.bfloat16
        )
        return model

    speeds = replace(H100, op_issue_s=op_issue_s)
    return FakeModel(make, speeds).profile(batch=1, tokens=LONG)


def swapped_share(plan: Plan) -> float:
    blocks = plan.policy.blocks
    return sum(b.swap_tiles for b in blocks) / (len(blocks) * plan.policy.num_tiles)


def planned_s(plan: Plan) -> float:
    return plan.prediction.step_forward_s + plan.prediction.step_backward_s


@pytest.mark.parametrize("tokens", [1 << 15, 1 << 17, 1 << 18])
def test_plans_of_a_gpu_that_waits_for_its_launches_are_those_of_its_true_costs(
    tokens: int,
) -> None:
    """Level 2. With tiles of 128 tokens all work looks like launches, and plans swap nothing."""
    limits = Limits(device_bytes=40 * GIB, host_bytes=64 * GIB)
    # Launches so short that nothing waits for them: tiles grow, and show the true costs.
    true = plan_on_clock(profile_of(1e-9), tokens, limits)
    made = plan_on_clock(profile_of(1e-5), tokens, limits)
    assert swapped_share(made) == pytest.approx(swapped_share(true), abs=0.05)
    assert swapped_share(made) > 0
    assert planned_s(made) == pytest.approx(planned_s(true), rel=0.03)
    # The plan for the waiting GPU is as good by the true costs as the one made from them.
    again = plan_on_clock(profile_of(1e-9), tokens, limits, tile_tokens=made.policy.tile_tokens)
    assert planned_s(again) <= 1.03 * planned_s(true)


def test_the_waiting_is_seen_where_tiles_are_short() -> None:
    times = profile_of(1e-5).times
    assert times.tile_issue_s > 3e-4
    assert profile_of(1e-9).times.tile_issue_s == 0
    assert times.overhead_s(64) > 0.8 * times.tile_issue_s


def test_no_timed_step_is_longer_than_the_model_allows() -> None:
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        use_cache=False,
    )

    def make() -> torch.nn.Module:
        model: torch.nn.Module = transformers.LlamaForCausalLM._from_config(config)
        return model

    fake = FakeModel(make, replace(H100, op_issue_s=1e-5))
    lengths: list[int] = []
    run = fake.model.model.forward

    def watched(*args: object, **kwargs: object) -> object:
        lengths.append(kwargs["input_ids"].shape[1])  # type: ignore[attr-defined]
        return run(*args, **kwargs)

    fake.model.model.forward = watched
    fake.profile(batch=1, tokens=4096)
    assert max(lengths) == 4096
