"""The rules of expandable segments, each on a sequence worked out by hand."""

import pytest

from memo_planner.allocators import replay
from memo_planner.allocators._caching import ExpandableAllocator
from memo_planner.allocators._replay import SimulatedOutOfMemory
from tests.planner.allocators.steps import MIB, PAPER, step


@pytest.mark.parametrize(
    ("size", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (20 * MIB, 20 * MIB),
        (20 * MIB + 1, 40 * MIB),
    ],
)
def test_pages_of_2_and_20_mib_are_mapped(size: int, reserved: int) -> None:
    allocator = ExpandableAllocator()
    allocator.alloc(size)
    assert allocator.tally.reserved_bytes == reserved
    assert allocator.tally.allocated_bytes == -(-size // 512) * 512


def test_a_segment_grows_from_the_free_end_of_its_last_page() -> None:
    allocator = ExpandableAllocator()
    first = allocator.alloc(12 * MIB)
    second = allocator.alloc(12 * MIB)
    assert second.address == first.address + 12 * MIB
    assert (allocator.tally.reserved_bytes, allocator.tally.num_segments) == (40 * MIB, 1)


def test_large_blocks_are_cut_to_the_last_512_bytes() -> None:
    allocator = ExpandableAllocator()
    first = allocator.alloc(20 * MIB - 512)
    assert first.size_bytes == 20 * MIB - 512
    allocator.free(first)
    assert allocator.alloc(20 * MIB - 1).size_bytes == 20 * MIB
    assert allocator.tally.reserved_bytes == 20 * MIB


def test_a_hole_is_used_before_the_smaller_end_that_can_grow() -> None:
    allocator = ExpandableAllocator()
    hole, _ = allocator.alloc(30 * MIB), allocator.alloc(5 * MIB)
    allocator.free(hole)
    # Free are the hole of 30 MiB and 5 MiB mapped at the end, which counts as endless.
    assert allocator.alloc(4 * MIB).address == hole.address
    assert allocator.tally.reserved_bytes == 40 * MIB


def test_under_pressure_whole_free_pages_are_unmapped() -> None:
    allocator = ExpandableAllocator(cap_bytes=62 * MIB)
    first, second, _ = (allocator.alloc(size * MIB) for size in (25, 10, 25))
    allocator.free(first)
    assert allocator.tally.reserved_bytes == 60 * MIB
    allocator.alloc(MIB)
    allocator.alloc(MIB)
    with_small = allocator.alloc(MIB)  # a second page of 2 MiB does not fit
    tally = allocator.tally
    # Of [0, 25) one page of 20 MiB is free as a whole.
    assert (tally.num_retries, tally.num_device_frees) == (1, 1)
    assert tally.reserved_bytes == 44 * MIB
    allocator.free(with_small)
    again = allocator.alloc(21 * MIB)  # with 5 MiB that are mapped, in the page that went
    assert again.address == first.address
    assert tally.num_retries == 2
    assert tally.reserved_bytes == 62 * MIB
    with pytest.raises(SimulatedOutOfMemory, match=r"5\.0 MiB .* cap of 62\.0 MiB beside 58\.0"):
        allocator.alloc(5 * MIB)
    allocator.free(second)
    allocator.alloc(14 * MIB)


def test_a_page_in_part_use_is_not_unmapped() -> None:
    allocator = ExpandableAllocator(cap_bytes=60 * MIB)
    _, middle, _ = (allocator.alloc(size * MIB) for size in (5, 40, 15))
    allocator.free(middle)  # [5, 45): of it [20, 40) is a page
    small = allocator.alloc(1)
    assert allocator.tally.reserved_bytes == (60 - 20 + 2) * MIB
    allocator.free(small)
    # Free and mapped are [5, 20) and [40, 45): the page comes back between them.
    assert allocator.alloc(40 * MIB).address == middle.address
    assert allocator.tally.reserved_bytes == 60 * MIB


def test_the_papers_example() -> None:
    """Best fit in one range ends at 2688 MiB, and the last of 135 pages of 20 MiB at 2700."""
    run = replay(step(PAPER, MIB), ExpandableAllocator(), "expandable").run
    assert run.reserved_peak_bytes == 2700 * MIB
    assert run.allocated_peak_bytes == 2432 * MIB
    assert run.num_segments == 1
