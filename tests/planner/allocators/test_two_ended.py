"""First fit from both ends, by hand."""

import pytest
from hypothesis import given, settings

from memo_planner.allocators import replay
from memo_planner.allocators._fits import TwoEndedAllocator, least_cap
from memo_planner.allocators._replay import SimulatedOutOfMemory
from memo_planner.trace import Requests
from tests.planner.allocators.steps import MIB, PAPER, step, steps


def two_ended(cap_mib: int) -> TwoEndedAllocator:
    return TwoEndedAllocator(cap_bytes=cap_mib * MIB)


def test_large_requests_come_from_the_top_and_small_ones_from_the_bottom() -> None:
    # Of 64 MiB, 2 MiB and more is large. 1 and 3 lie at the top, 2 and 4 at the bottom.
    found = replay(step("1:2 2:1 3:4 4:1 -1 -2 5:3 6:1", MIB), two_ended(64), "two-ended")
    tops = [62, 0, 58, 1, 55, 0]
    assert found.addresses.tolist() == [top * MIB for top in tops]
    assert found.run.reserved_peak_bytes == 64 * MIB


def test_the_first_hole_is_taken_not_the_best() -> None:
    found = replay(step("1:9 2:3 3:4 4:3 -1 -3 5:4", MIB), two_ended(64), "two-ended")
    assert found.addresses[4] == (64 - 4) * MIB  # in the 9 of 1, though the 4 of 3 fits


def test_what_does_not_fit_is_refused() -> None:
    allocator = two_ended(10)
    allocator.alloc(4 * MIB)
    allocator.alloc(100)
    with pytest.raises(SimulatedOutOfMemory, match=r"no hole holds 6\.0 MiB beside 4\.0 MiB"):
        allocator.alloc(6 * MIB)


def test_the_papers_example() -> None:
    """All of it is large: as best fit, from the top. 24 (512) finds no hole below 2688 MiB."""
    requests = step(PAPER, MIB)
    assert replay(requests, two_ended(2687), "two-ended").run.refused_id == 24
    assert replay(requests, two_ended(2688), "two-ended").run.refused_id is None
    found = least_cap(requests, "two-ended").run.reserved_peak_bytes
    assert 2688 * MIB <= found <= 2688 * MIB * 1.005


@settings(max_examples=40, deadline=None)
@given(requests=steps())
def test_the_least_cap_serves_the_step(requests: Requests) -> None:
    run = least_cap(requests, "two-ended").run
    assert run.refused_id is None
    assert run.reserved_peak_bytes >= run.allocated_peak_bytes >= run.requested_peak_bytes
