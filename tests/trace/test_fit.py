"""The planner's rates from profiling steps whose seconds follow known lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from memo_train.trace._fit import fit_block_times, fit_peak_lines
from memo_train.trace._steps import MeasuredStep, Shapes

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
    return Shapes(
        half=step(512, 128, swapped=swapped),
        short=step(1024, 128, swapped=swapped),
        long=step(2048, 128, swapped=swapped),
        wide=step(2048, 256, swapped=swapped),
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
    found = shapes(swapped=False)
    seconds = {stage: s / 4 for stage, s in found.long.seconds.items()}
    quick = replace(found, long=replace(found.long, seconds=seconds))
    times = fit_block_times(quick, replace(quick, wide=quick.long))
    assert times.tile_overhead_s == 0
    assert times.swap_s_per_token == 0
    assert times.attention_s_per_token2 == 0
    assert times.pre_s_per_token > 0


def with_peaks(bytes_of: Callable[[int, int], float]) -> Shapes:
    """Steps whose attention takes `bytes_of` tokens and tile tokens."""
    found = shapes(swapped=False)
    steps = {
        name: replace(each, peak_bytes={"attention": int(bytes_of(each.tokens, each.tile_tokens))})
        for name, each in vars(found).items()
    }
    return Shapes(**steps)


def test_scores_of_all_pairs_of_tokens_have_a_figure_of_their_own() -> None:
    """Three bytes a pair are found among other bytes, and lengths far beyond are not below."""
    found = with_peaks(lambda tokens, tile: 9000 + 70 * tile + 500 * tokens + 3 * tokens**2)
    line = max(
        fit_peak_lines(found, ("forward",), with_pairs=True), key=lambda each: each.bytes_per_token2
    )
    assert line.bytes_per_token2 == pytest.approx(3, rel=0.05)
    assert line.at(40_000, 512) == pytest.approx(500 * 40_000 + 3 * 40_000**2, rel=0.05)
    assert line.at(40_000, 512) >= 9000 + 70 * 512 + 500 * 40_000 + 3 * 40_000**2


def test_work_space_that_changes_with_the_length_is_no_mask() -> None:
    found = with_peaks(lambda tokens, tile: 500 * tokens + (400_000 if tokens >= 768 else 0))
    assert all(
        line.bytes_per_token2 == 0 for line in fit_peak_lines(found, ("forward",), with_pairs=True)
    )


def test_copies_under_way_are_no_mask() -> None:
    """A peak may bend by any number of bytes; without saved scores that is no figure of pairs."""
    found = with_peaks(lambda tokens, tile: 500 * tokens + (4_000_000 if tokens >= 2048 else 0))
    assert all(line.bytes_per_token2 == 0 for line in fit_peak_lines(found, ("forward",)))
