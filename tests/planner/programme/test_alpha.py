"""Alpha set by hand: the paper's policy, whatever the planner would have chosen."""

from __future__ import annotations

import pytest

from memo_planner import InvalidInput, Limits, Place, PlanInfeasible, make_plan
from memo_planner.profile import Link
from tests.planner.cases import GIB, large_profile, small_profile
from tests.planner.checker import tally

NO_LIMITS = Limits(device_bytes=None, host_bytes=None)


@pytest.mark.parametrize(
    ("alpha", "swapped"),
    [(0, 0), (0.0, 0), (0.3, 3), (0.25, 2), (0.38, 4), (0.5, 5), (1.0, 10), (1, 10)],
)
def test_every_block_swaps_its_share_and_recomputes_the_rest(alpha: float, swapped: int) -> None:
    plan = make_plan(small_profile(), 37, NO_LIMITS, alpha=alpha, tile_tokens=4)
    assert plan.policy.num_tiles == 10
    for block in plan.policy.blocks:
        counts = (block.keep_tiles, block.swap_tiles, block.recompute_tiles)
        assert counts == (0, swapped, 10 - swapped)
        assert (block.x, block.o) == (Place.SWAP, Place.SWAP)
    assert plan.policy.alpha == swapped / 10


def test_bytes_and_seconds_by_hand() -> None:
    """8 tokens in tiles of 4, alpha 1/2: 16 + 32 + 4 * 15 bytes go, 4 tokens * 4 s come again."""
    plan = make_plan(small_profile(), 8, NO_LIMITS, alpha=0.5, tile_tokens=4)
    told = plan.prediction
    assert told.host_peak_bytes == 2 * (16 + 32 + 60)
    assert told.recompute_s == told.extra_s == 2 * 4 * 4
    assert told.device_peak_bytes == 1000 + 50 + 30 * 4 + 35 * 8
    assert told.device_peak_point == "backward of block 1"
    assert told.step_forward_s == 2 * (4 * 8 + 0.5 * 64)
    assert told.step_backward_s == 2 * (8 * 8 + 1.25 * 64 + 16)


def test_limits_still_hold() -> None:
    ask = {"alpha": 0.5, "tile_tokens": 4}
    enough = Limits(device_bytes=1450, host_bytes=216)
    assert make_plan(small_profile(), 8, enough, **ask).prediction.host_peak_bytes == 216
    with pytest.raises(PlanInfeasible, match=r"swapped tensors need 216 B on the host, limit 215"):
        make_plan(small_profile(), 8, Limits(device_bytes=None, host_bytes=215), **ask)
    with pytest.raises(PlanInfeasible, match=r"block backward needs .* on the device"):
        make_plan(small_profile(), 8, Limits(device_bytes=1449, host_bytes=None), **ask)


def test_binding_windows_show_as_stalls() -> None:
    slow = small_profile(link=Link(d2h_bytes_per_s=1.0, h2d_bytes_per_s=1e6))
    plan = make_plan(slow, 8, NO_LIMITS, alpha=1.0, tile_tokens=4)
    assert plan.prediction.stall_s == 2 * (16 + 32 + 120 - (32 + 32))
    assert plan.prediction.binds == ("forward window",)


@pytest.mark.parametrize("alpha", [0.125, 0.3, 0.5, 0.9])
def test_a_tile_size_is_found_that_can_split_at_alpha(alpha: float) -> None:
    limits = Limits(device_bytes=80 * GIB, host_bytes=None)
    plan = make_plan(large_profile(), 131_072, limits, alpha=alpha)
    assert abs(plan.policy.alpha - alpha) <= 1 / 16
    assert tally(plan.profile, plan.policy).device_bytes <= 80 * GIB


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), float("inf"), "0.5", True])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(InvalidInput, match="alpha"):
        make_plan(small_profile(), 8, NO_LIMITS, alpha=alpha)
