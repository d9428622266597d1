"""What does not fit, what the message says, and the longest sequence that does fit."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import assume, given, settings

from memo_planner import InvalidInput, Limits, PlanInfeasible, Profile, make_plan, max_tokens
from tests.planner.cases import GIB, large_profile, small_cases, small_profile

Case = tuple[Profile, int, int, Limits]


@settings(max_examples=40, deadline=None)
@given(small_cases())
def test_longest_length_fits_and_the_next_does_not(case: Case) -> None:
    profile, _, tile_tokens, limits = case
    assume(limits.device_bytes is not None)
    longest = max_tokens(profile, limits, tile_tokens=tile_tokens)
    if longest:
        make_plan(profile, longest, limits, tile_tokens=tile_tokens)
    for tokens in (longest + 1, longest + tile_tokens):
        with pytest.raises(PlanInfeasible) as caught:
            make_plan(profile, tokens, limits, tile_tokens=tile_tokens)
        assert caught.value.max_tokens == longest


@pytest.mark.parametrize("alpha", [None, 0.0, 0.5, 1.0])
def test_longest_length_of_a_large_model(alpha: float | None) -> None:
    limits = Limits(device_bytes=80 * GIB, host_bytes=100 * GIB)
    profile = large_profile()
    longest = max_tokens(profile, limits, alpha=alpha)
    plan = make_plan(profile, longest, limits, alpha=alpha)
    assert plan.prediction.host_peak_bytes <= 100 * GIB
    assert plan.prediction.device_peak_bytes <= 80 * GIB
    with pytest.raises(PlanInfeasible):
        make_plan(profile, longest + 64, limits, alpha=alpha)


def test_longest_length_by_hand() -> None:
    """Backward needs 1000 + 50 + 30 * 4 + 35 * tokens bytes; the host does not limit."""
    limits = Limits(device_bytes=1170 + 35 * 20, host_bytes=None)
    assert max_tokens(small_profile(), limits, tile_tokens=4) == 20
    one_less = Limits(device_bytes=1170 + 35 * 20 - 1, host_bytes=None)
    assert max_tokens(small_profile(), one_less, tile_tokens=4) == 19


def test_room_on_the_device_relieves_the_host() -> None:
    """x 16 and o 32 bytes per block must go somewhere: 80 bytes of room hold both o and one x."""
    assert make_plan(
        small_profile(), 8, Limits(device_bytes=1450 + 80, host_bytes=16), tile_tokens=4
    )
    with pytest.raises(PlanInfeasible, match="swapped tensors need 32 B on the host, limit 16 B"):
        make_plan(small_profile(), 8, Limits(device_bytes=1450 + 79, host_bytes=16), tile_tokens=4)


def test_message_names_point_need_limit_and_way_out() -> None:
    with pytest.raises(PlanInfeasible) as caught:
        make_plan(large_profile(), 2**21, Limits(device_bytes=40 * GIB, host_bytes=None))
    error = caught.value
    assert (error.what, error.where) == ("block backward", "device")
    assert error.limit_bytes == 40 * GIB
    assert error.need_bytes > error.limit_bytes
    need = f"{error.need_bytes / GIB:.1f}"
    assert str(error) == (
        f"block backward needs {need} GiB on the device, limit 40.0 GiB; "
        f"longest sequence that fits: {error.max_tokens:,} tokens"
    )
    assert make_plan(
        large_profile(), error.max_tokens, Limits(device_bytes=40 * GIB, host_bytes=None)
    )


def test_message_says_so_where_nothing_fits() -> None:
    with pytest.raises(PlanInfeasible, match="no sequence fits, not even one tile") as caught:
        make_plan(small_profile(), 100, Limits(device_bytes=1000, host_bytes=None))
    assert caught.value.max_tokens == 0
    assert max_tokens(small_profile(), Limits(device_bytes=1000, host_bytes=None)) == 0


def test_message_tells_close_values_apart() -> None:
    error = PlanInfeasible("loss", "device", 40 * GIB + 5, 40 * GIB, 7)
    assert "loss needs 42,949,672,965 B on the device, limit 42,949,672,960 B" in str(error)
    assert "limit 40.0 GiB" in str(PlanInfeasible("loss", "device", 41 * GIB, 40 * GIB, 7))


def test_error_survives_a_process_border() -> None:
    error = PlanInfeasible("loss", "device", 2, 1, 0)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_changed_refusal_keeps_all_else() -> None:
    error = PlanInfeasible("loss", "device", 2, 1, 5, "shorten the mask")
    doubled = error.changed(max_tokens=10)
    expected = "loss needs 2 B on the device, limit 1 B; longest sequence that fits: 10 tokens"
    assert str(doubled) == f"{expected}; shorten the mask"
    assert str(doubled.changed(max_tokens=10, advice="or swap")).endswith("the mask; or swap")
    kept = ("what", "where", "need_bytes", "limit_bytes", "advice")
    assert all(getattr(doubled, name) == getattr(error, name) for name in kept)


def test_no_limit_has_no_longest_length() -> None:
    with pytest.raises(InvalidInput, match="nothing limits the length"):
        max_tokens(small_profile(), Limits(device_bytes=None, host_bytes=None))


@pytest.mark.parametrize("tokens", [0, -1, 2**41, 1.5, True])
def test_lengths_out_of_range_are_refused(tokens: int) -> None:
    with pytest.raises(InvalidInput, match="tokens is"):
        make_plan(small_profile(), tokens, Limits(device_bytes=None, host_bytes=None))


@pytest.mark.parametrize("tile_tokens", [0, -4, 1.0])
def test_tile_sizes_out_of_range_are_refused(tile_tokens: int) -> None:
    with pytest.raises(InvalidInput, match="tile_tokens"):
        make_plan(
            small_profile(),
            8,
            Limits(device_bytes=None, host_bytes=None),
            tile_tokens=tile_tokens,
        )
