"""The planner's rates from profiling steps whose seconds follow known lines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memo_train.trace._fit import Shapes, fit_block_times
from memo_train.trace._steps import MeasuredStep

PRE, POST, BACK = 1e-5, 3e-5, 2e-5  # seconds of a token
ATTENTION = 4e-9  # seconds of a pair of tokens
OVERHEAD = 2e-4  # seconds of one more tile, a pass
RECORDING = 5e-6  # seconds that swapping adds to a token


def step(tokens: int, tile_tokens: int, *, swapped: bool) -> MeasuredStep:
    """A forward and backward of pre and post, each of which has half a pass's overhead."""
    half_s = tokens / tile_tokens * OVERHEAD / 2
    again_s = 0.0 if swapped else (PRE + POST) * tokens + 2 * half_s
    recorded_s = RECORDING * tokens / 2 if swapped else 0.0
    return MeasuredStep(
        tokens=tokens,
        tile_tokens=tile_tokens,
        seconds={
            "pre": PRE * tokens + half_s + recorded_s,
            "attention": 7e-3 + ATTENTION * tokens**2,
            "post": POST * tokens + half_s + recorded_s,
            "post_backward": 2 * BACK * tokens + again_s + half_s,
            "attention_backward": 2 * ATTENTION * tokens**2,
            "pre_backward": BACK * tokens + half_s,
        },
        peak_bytes={},
    )


def shapes(*, swapped: bool) -> Shapes:
    return (
        step(1024, 128, swapped=swapped),
        step(2048, 128, swapped=swapped),
        step(2048, 256, swapped=swapped),
    )


def test_rates_add_up_to_the_seconds_they_were_fitted_to() -> None:
    times = fit_block_times(shapes(swapped=False), shapes(swapped=True))
    assert times.tile_overhead_s == pytest.approx(OVERHEAD)
    assert times.swap_s_per_token == pytest.approx(RECORDING)
    assert times.attention_s_per_token2 == pytest.approx(ATTENTION)
    assert times.attention_backward_s_per_token2 == pytest.approx(2 * ATTENTION)
    # The overhead is taken from all stages alike, so single ones are only nearly right.
    assert times.pre_s_per_token == pytest.approx(PRE, rel=0.1)
    assert times.post_s_per_token == pytest.approx(POST, rel=0.1)
    passes_s = 3 * times.tile_overhead_s * 2048 / 256
    tilewise_s = times.tilewise_s_per_token * 2048
    backward_s = (times.pre_backward_s_per_token + times.post_backward_s_per_token) * 2048
    seconds = step(2048, 256, swapped=False).seconds
    stages = ("pre", "post", "post_backward", "pre_backward")
    assert 2 * tilewise_s + backward_s + passes_s == pytest.approx(sum(seconds[s] for s in stages))


def test_noise_never_makes_a_rate_negative() -> None:
    short, long, wide = shapes(swapped=False)
    quick = replace(long, seconds={stage: s / 4 for stage, s in long.seconds.items()})
    times = fit_block_times((short, quick, wide), (short, quick, quick))
    assert times.tile_overhead_s == 0
    assert times.swap_s_per_token == 0
    assert times.attention_s_per_token2 == 0
    assert times.pre_s_per_token > 0
