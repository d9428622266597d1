"""The rules of the caching allocator, each on a sequence worked out by hand."""

import pytest

from memo_planner.allocators import CachingAllocator, replay
from memo_planner.allocators._replay import SimulatedOutOfMemory
from memo_planner.errors import InvalidInput
from tests.planner.allocators.steps import MIB, PAPER, step


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small one
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # from here on a segment of its own
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (33 * MIB, 33 * MIB, 34 * MIB),
    ],
)
def test_one_request_in_an_empty_cache(size: int, allocated: int, reserved: int) -> None:
    allocator = CachingAllocator()
    block = allocator.alloc(size)
    tally = allocator.tally
    # A rest of up to 1 MiB is not cut off in the large pool: it counts as allocated.
    rest = reserved - allocated
    whole = size > MIB and rest <= MIB
    assert tally.allocated_bytes == block.size_bytes == (reserved if whole else allocated)
    assert (tally.reserved_bytes, tally.num_segments) == (reserved, 1)
    assert tally.inactive_split_bytes == (0 if whole else rest)


def test_small_and_large_requests_do_not_share_segments() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.alloc(2 * MIB))
    allocator.alloc(MIB)
    assert allocator.tally.reserved_bytes == 22 * MIB


def test_two_requests_of_1_mib_fill_a_small_segment() -> None:
    allocator = CachingAllocator()
    first, second, third = (allocator.alloc(MIB) for _ in range(3))
    assert (first.address, second.address) == (0, MIB)
    assert third.address == 2 * MIB
    assert allocator.tally.num_segments == 2


@pytest.mark.parametrize(
    ("size", "handed_out"),
    [
        (39 * MIB, 40 * MIB),  # a rest of exactly 1 MiB stays with the block
        (39 * MIB - 512, 39 * MIB - 512),
    ],
)
def test_a_large_block_is_cut_if_over_1_mib_is_left(size: int, handed_out: int) -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.alloc(40 * MIB))
    assert allocator.alloc(size).size_bytes == handed_out
    assert allocator.tally.reserved_bytes == 40 * MIB


def test_a_small_block_is_cut_to_the_last_512_bytes() -> None:
    allocator = CachingAllocator()
    allocator.alloc(MIB)
    assert allocator.alloc(MIB - 512).size_bytes == MIB - 512
    assert allocator.tally.inactive_split_bytes == 512
    assert allocator.alloc(1).address == 2 * MIB - 512
    assert allocator.tally.inactive_split_bytes == 0


def test_the_best_fit_is_taken_and_of_equal_ones_the_lowest() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.alloc(size * MIB) for size in (16, 12, 14, 12)]
    for block in blocks:
        allocator.free(block)
    assert allocator.alloc(11 * MIB).address == 16 * MIB  # the first of 12, not that of 16
    assert allocator.alloc(12 * MIB).address == (16 + 12 + 14) * MIB
    assert allocator.alloc(13 * MIB).address == (16 + 12) * MIB


def test_freed_neighbours_become_one() -> None:
    allocator = CachingAllocator()
    low, middle, high = (allocator.alloc(4 * MIB) for _ in range(3))
    assert allocator.tally.inactive_split_bytes == 8 * MIB
    allocator.free(middle)
    assert allocator.tally.inactive_split_bytes == 12 * MIB
    allocator.free(high)  # with the middle and the rest of the segment
    assert allocator.tally.inactive_split_bytes == 16 * MIB
    allocator.free(low)
    assert allocator.tally.inactive_split_bytes == 0
    assert allocator.alloc(20 * MIB).address == 0
    assert allocator.tally.num_device_allocs == 1


def test_segments_never_become_one() -> None:
    allocator = CachingAllocator()
    for block in [allocator.alloc(10 * MIB) for _ in range(2)]:
        allocator.free(block)
    allocator.alloc(20 * MIB)
    assert allocator.tally.reserved_bytes == 40 * MIB


def test_over_the_cap_free_segments_are_given_back_and_it_is_tried_again() -> None:
    allocator = CachingAllocator(cap_bytes=42 * MIB)
    allocator.free(allocator.alloc(20 * MIB))
    allocator.free(allocator.alloc(1))
    allocator.alloc(42 * MIB)
    tally = allocator.tally
    assert (tally.num_retries, tally.num_device_allocs, tally.num_device_frees) == (1, 3, 2)
    assert (tally.reserved_bytes, tally.reserved_peak_bytes) == (42 * MIB, 42 * MIB)


def test_a_segment_in_part_use_cannot_be_given_back() -> None:
    allocator = CachingAllocator(cap_bytes=42 * MIB)
    allocator.alloc(2 * MIB)
    with pytest.raises(SimulatedOutOfMemory, match=r"24\.0 MiB does not fit .* 42\.0 MiB .* 20\.0"):
        allocator.alloc(24 * MIB)
    assert allocator.tally.num_retries == 1
    allocator.alloc(22 * MIB)  # what fits is still served


def test_blocks_of_max_split_are_never_cut() -> None:
    allocator = CachingAllocator(max_split_bytes=32 * MIB)
    allocator.free(allocator.alloc(64 * MIB))
    assert allocator.alloc(30 * MIB).address == 64 * MIB  # too small for so large a block
    assert allocator.alloc(44 * MIB).address == 94 * MIB  # 20 MiB less than the block
    block = allocator.alloc(46 * MIB)
    assert (block.address, block.size_bytes) == (0, 64 * MIB)


def test_with_max_split_just_enough_is_given_back_first() -> None:
    allocator = CachingAllocator(cap_bytes=130 * MIB, max_split_bytes=32 * MIB)
    for block in [allocator.alloc(size * MIB) for size in (64, 40, 22)]:
        allocator.free(block)
    allocator.alloc(42 * MIB)  # 64 is the best fit of those that could hold it
    tally = allocator.tally
    assert (tally.reserved_bytes, tally.num_device_frees) == (104 * MIB, 1)
    allocator.alloc(64 * MIB)  # nothing holds 64: the largest go, until 64 MiB or the end
    assert (tally.num_device_frees, tally.num_retries) == (3, 1)
    assert tally.reserved_bytes == 106 * MIB


def test_what_cannot_be_an_option_is_refused() -> None:
    with pytest.raises(InvalidInput, match="max_split_bytes is 20,971,520"):
        CachingAllocator(max_split_bytes=20 * MIB)
    with pytest.raises(InvalidInput, match="cap_bytes is 0"):
        CachingAllocator(cap_bytes=0)


def test_the_papers_example() -> None:
    """128 + 128 + 256 + 512 + 256 + 512 + 1024: 20 and 24 share one segment, 21 needs its own."""
    run = replay(step(PAPER, MIB), CachingAllocator(), "caching").run
    assert run.reserved_peak_bytes == 2816 * MIB
    assert run.allocated_peak_bytes == run.requested_peak_bytes == 2432 * MIB
    assert run.num_segments == 7
    assert run.fragmentation == pytest.approx(1 - 2432 / 2816)
