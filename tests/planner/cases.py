"""Profiles for the planner's tests, small enough to check by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from memo_planner import BlockTimes, Limits, Link, PeakLine, Profile

GIB = 2**30


def line(name: str, base: float = 0.0, tile: float = 0.0, token: float = 0.0) -> PeakLine:
    return PeakLine(name=name, base_bytes=base, bytes_per_tile_token=tile, bytes_per_token=token)


def times(**other: float) -> BlockTimes:
    figures = {
        "pre_s_per_token": 1.0,
        "post_s_per_token": 3.0,
        "attention_s_per_token2": 0.5,
        "pre_backward_s_per_token": 2.0,
        "post_backward_s_per_token": 6.0,
        "attention_backward_s_per_token2": 1.25,
        "tile_overhead_s": 0.0,
    }
    return BlockTimes(**{**figures, **other})


def small_profile(**other: Any) -> Profile:
    """Two blocks, round numbers: x 2, o 3 + 1, tile 4 + 5 + 6 = 15 bytes per token; state 1000."""
    figures: dict[str, Any] = {
        "model": "toy",
        "model_hash": "abc",
        "device": "cpu",
        "batch": 1,
        "num_blocks": 2,
        "state_bytes": 1000,
        "x_bytes_per_token": 2.0,
        "o_bytes_per_token": 3.0,
        "qkv_bytes_per_token": 6.0,
        "attention_bytes_per_token": 1.0,
        "pre_bytes_per_token": 4.0,
        "post_bytes_per_token": 5.0,
        "peaks": (
            line("forward", 10, 20, 30),
            line("loss", 40, 10, 5),
            line("backward", 50, 30, 35),
        ),
        "times": times(),
        "link": Link(d2h_bytes_per_s=1000.0, h2d_bytes_per_s=1000.0),
    }
    return Profile(**{**figures, **other})


def large_profile(num_blocks: int = 80, tile_overhead_s: float = 2e-3) -> Profile:
    """About a 65B model on one of 8 devices, bf16."""
    hidden = 2.0 * 8192 / 8
    return Profile(
        model="65B",
        model_hash="abc",
        device="one of 8",
        batch=1,
        num_blocks=num_blocks,
        state_bytes=20 * GIB,
        x_bytes_per_token=hidden,
        o_bytes_per_token=hidden,
        qkv_bytes_per_token=3 * hidden,
        attention_bytes_per_token=32.0,
        pre_bytes_per_token=hidden,
        post_bytes_per_token=10 * hidden,
        peaks=(
            line("forward", 1e6, 20 * hidden, 6 * hidden),
            line("loss", 1e6, 25000.0, 2 * hidden),
            line("backward", 1e6, 30 * hidden, 10 * hidden),
        ),
        times=BlockTimes(
            pre_s_per_token=1e-6,
            post_s_per_token=4e-6,
            attention_s_per_token2=1.2e-11,
            pre_backward_s_per_token=2e-6,
            post_backward_s_per_token=8e-6,
            attention_backward_s_per_token2=3e-11,
            tile_overhead_s=tile_overhead_s,
        ),
        link=Link(d2h_bytes_per_s=10e9, h2d_bytes_per_s=12e9),
    )


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[Profile, int, int, Limits]:
    """A profile of one to three blocks, tokens, a tile size of one to four tiles, and limits."""
    num = st.integers(0, 9).map(float)
    speed = st.sampled_from([1.0, 5.0, 20.0, 80.0, 1000.0])
    tokens = draw(st.integers(1, 24))
    tile_tokens = draw(st.integers(-(-tokens // 4), tokens))
    profile = small_profile(
        num_blocks=draw(st.integers(1, 3)),
        x_bytes_per_token=draw(num),
        o_bytes_per_token=draw(num),
        qkv_bytes_per_token=draw(num),
        pre_bytes_per_token=draw(st.sampled_from([0.0, 0.3, 2.5, 7.0])),
        times=times(
            pre_s_per_token=draw(st.floats(0.0, 2.0)),
            tile_overhead_s=draw(st.sampled_from([0.0, 0.1, 1.0])),
            swap_s_per_token=draw(st.sampled_from([0.0, 0.5, 3.0])),
        ),
        link=Link(d2h_bytes_per_s=draw(speed), h2d_bytes_per_s=draw(speed)),
    )
    return profile, tokens, tile_tokens, draw(small_limits())


@st.composite
def small_limits(draw: st.DrawFn) -> Limits:
    """Limits around what `small_cases` need, or none."""
    device = draw(st.one_of(st.none(), st.integers(1000, 5000)))
    host = draw(st.one_of(st.none(), st.integers(1, 1500)))
    return Limits(device_bytes=device, host_bytes=host)


def with_device(limits: Limits, more_bytes: int) -> Limits:
    assert limits.device_bytes is not None
    return replace(limits, device_bytes=limits.device_bytes + more_bytes)
