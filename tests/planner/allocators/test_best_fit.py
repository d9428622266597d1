"""Best fit in one range, by hand."""

import pytest

from memo_planner.allocators import BestFitAllocator, replay
from memo_planner.allocators._replay import SimulatedOutOfMemory
from memo_planner.errors import InvalidInput
from tests.planner.allocators.steps import MIB, PAPER, step


def test_the_smallest_hole_that_holds_a_request_is_taken() -> None:
    # Holes of 30 at 0, 20 at 40 and 20 at 70 between what stays.
    events = "1:30 2:10 3:20 4:10 5:20 6:10 -1 -3 -5 7:15 8:18 9:21"
    found = replay(step(events), BestFitAllocator(alignment_bytes=1), "best fit")
    assert found.addresses.tolist() == [0, 30, 40, 60, 70, 90, 40, 70, 0]
    assert found.run.reserved_peak_bytes == 100


def test_sizes_are_rounded_to_the_alignment() -> None:
    found = replay(step("1:1 2:65"), BestFitAllocator(alignment_bytes=64), "best fit")
    assert found.addresses.tolist() == [0, 64]
    assert found.run.allocated_peak_bytes == found.run.reserved_peak_bytes == 192
    assert found.run.requested_peak_bytes == 66


def test_the_cap_is_on_addresses() -> None:
    allocator = BestFitAllocator(alignment_bytes=1, cap_bytes=30)
    low, _, high = (allocator.alloc(10) for _ in range(3))
    allocator.free(low)
    allocator.free(high)
    with pytest.raises(SimulatedOutOfMemory, match="no hole holds 11 B beside 10 B in use"):
        allocator.alloc(11)
    with pytest.raises(InvalidInput, match="cap_bytes is 63; it must be from 64"):
        BestFitAllocator(alignment_bytes=64, cap_bytes=63)


def test_the_papers_example() -> None:
    """24 (512) finds no hole in backward: it ends at 2176 + 512, 256 above what is needed."""
    run = replay(step(PAPER, MIB), BestFitAllocator(), "best fit").run
    assert run.reserved_peak_bytes == 2688 * MIB
    assert run.fragmentation == pytest.approx(1 - 2432 / 2688)
