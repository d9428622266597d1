"""The data types refuse figures that mean nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from memo_planner import (
    BlockPolicy,
    InvalidInput,
    Limits,
    Link,
    MemoError,
    Place,
    Policy,
    TilePlace,
)
from tests.planner.cases import line, small_profile, times


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 2.0**61, "3", True, None])
def test_profile_refuses_bad_figures(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"Profile\.x_bytes_per_token"):
        small_profile(x_bytes_per_token=value)
    with pytest.raises(InvalidInput, match=r"BlockTimes\.tile_overhead_s"):
        times(tile_overhead_s=value)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"PeakLine\.base_bytes"):
        line("loss", base=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_blocks", 0),
        ("num_blocks", 1.0),
        ("batch", -1),
        ("state_bytes", -1),
        ("model", ""),
        ("model_hash", None),
        ("peaks", (line("forward"), line("loss"))),
    ],
)
def test_profile_refuses_bad_counts(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=rf"Profile\.{field}"):
        small_profile(**{field: value})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 0.5])
def test_link_needs_a_speed(value: float) -> None:
    with pytest.raises(InvalidInput, match="h2d_bytes_per_s"):
        Link(d2h_bytes_per_s=1.0, h2d_bytes_per_s=value)


def test_unknown_point_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"PeakLine\.name is 'middle'"):
        line("middle")


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_budget_of_nothing_is_not_unlimited(value: int) -> None:
    with pytest.raises(InvalidInput, match=r"Limits\.host_bytes"):
        Limits(device_bytes=None, host_bytes=value)


def test_numbers_of_numpy_become_floats() -> None:
    profile = small_profile(x_bytes_per_token=np.float64(2.0), o_bytes_per_token=3)
    assert type(profile.x_bytes_per_token) is float
    assert profile == small_profile()


def test_the_highest_of_several_lines_counts() -> None:
    peaks = (line("forward"), line("loss"), line("backward", 5), line("backward", 0, 0, 1))
    profile = small_profile(peaks=peaks)
    assert profile.peak_bytes("backward", tokens=3, tile_tokens=1) == 5
    assert profile.peak_bytes("backward", tokens=8, tile_tokens=1) == 8


def test_tiles_of_a_block_in_token_order() -> None:
    block = BlockPolicy(keep_tiles=1, swap_tiles=2, recompute_tiles=1, x=Place.KEEP, o=Place.SWAP)
    assert [block.tile_place(i) for i in range(4)] == [
        TilePlace.SWAP,
        TilePlace.SWAP,
        TilePlace.RECOMPUTE,
        TilePlace.KEEP,
    ]
    for tile in (-1, 4):
        with pytest.raises(InvalidInput, match="tile is"):
            block.tile_place(tile)


def test_policy_counts_tiles() -> None:
    block = BlockPolicy(keep_tiles=1, swap_tiles=2, recompute_tiles=0, x=Place.KEEP, o=Place.SWAP)
    policy = Policy(tokens=9, tile_tokens=4, blocks=(block,))
    assert policy.num_tiles == 3
    assert policy.alpha == pytest.approx(2 / 3)
    with pytest.raises(InvalidInput, match=r"blocks\[0\] has 3 tiles; 8 tokens .* make 2"):
        Policy(tokens=8, tile_tokens=4, blocks=(block,))
    with pytest.raises(InvalidInput, match="at least one block"):
        Policy(tokens=8, tile_tokens=4, blocks=())
    with pytest.raises(InvalidInput, match="tile_tokens"):
        Policy(tokens=2, tile_tokens=4, blocks=(block,))


def test_every_error_is_of_the_projects_tree() -> None:
    assert issubclass(InvalidInput, MemoError)
