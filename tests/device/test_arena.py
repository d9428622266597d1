"""The arena: where it places, what its cap means, what it counts, what it refuses."""

import numpy as np
import pytest

from memo_train import _core
from memo_train.device import InvalidDeviceArgument
from memo_train.device.errors import DeviceMemoryExceeded

KIB = 1024


def used(arena: _core.Arena) -> int:
    return arena.counters().used_bytes


def make_holes(arena: _core.Arena, *sizes: int) -> list[int]:
    """Holes of these sizes, low to high, kept apart by live blocks of 64 bytes."""
    blocks = []
    for size in sizes:
        blocks.append(arena.alloc(size))
        arena.alloc(64)
    for block in blocks:
        arena.free(block)
    return blocks


def test_small_requests_take_the_lowest_hole_that_holds_them(arena: _core.Arena) -> None:
    small, fitting, _larger = make_holes(arena, KIB, 4 * KIB, 4 * KIB)
    assert arena.alloc(3 * KIB) == fitting
    assert arena.alloc(KIB) == small


def test_without_a_cap_every_request_is_small(arena: _core.Arena) -> None:
    (hole,) = make_holes(arena, 512 * KIB)
    assert arena.alloc(500 * KIB) == hole


def test_under_a_cap_large_requests_come_from_the_top_down(arena: _core.Arena) -> None:
    bottom = arena.alloc(64)
    arena.set_cap(512 * KIB + 64)
    top = bottom + 512 * KIB + 64
    # 512 KiB are free, so a request is large from 16 KiB.
    assert arena.alloc(16 * KIB - 64) == bottom + 64
    high = arena.alloc(16 * KIB)
    assert high == top - 16 * KIB
    assert arena.alloc(64 * KIB) == top - 80 * KIB
    arena.free(high)
    assert arena.alloc(17 * KIB) == top - 97 * KIB, "the highest hole is too small for it"
    assert arena.alloc(16 * KIB) == high


def test_what_counts_as_large_can_be_set(arena: _core.Arena) -> None:
    bottom = arena.alloc(64)
    arena.set_large_bytes(4 * KIB)
    assert arena.alloc(8 * KIB) == bottom + 64, "no cap: there is no top"
    arena.set_cap(512 * KIB)
    assert arena.alloc(4 * KIB) == bottom + 508 * KIB
    assert arena.alloc(4 * KIB - 64) == bottom + 64 + 8 * KIB
    arena.set_large_bytes(None)
    assert arena.alloc(8 * KIB) == bottom + 12 * KIB


def test_large_and_small_requests_share_the_last_hole(arena: _core.Arena) -> None:
    arena.set_cap(64 * KIB)
    small = [arena.alloc(1984) for _ in range(16)]
    arena.alloc(32 * KIB)
    assert arena.counters().largest_hole_bytes == 32 * KIB - 16 * 1984
    with pytest.raises(DeviceMemoryExceeded):
        arena.alloc(2048)
    arena.free(small[15])
    arena.alloc(2048)
    arena.alloc(960)
    assert arena.counters().largest_hole_bytes == 0


def test_rest_of_a_hole_stays_usable(arena: _core.Arena) -> None:
    (hole,) = make_holes(arena, 8 * KIB)
    assert arena.alloc(2 * KIB) == hole
    assert arena.alloc(6 * KIB) == hole + 2 * KIB


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_neighbouring_holes_become_one(arena: _core.Arena, order: tuple[int, ...]) -> None:
    blocks = [arena.alloc(KIB) for _ in range(3)]
    arena.alloc(64)
    for index in order:
        arena.free(blocks[index])
    assert arena.alloc(3 * KIB) == blocks[0]


def test_freeing_the_top_gives_back_the_whole_end(arena: _core.Arena) -> None:
    low, high = arena.alloc(KIB), arena.alloc(KIB)
    arena.free(low)
    arena.free(high)
    counters = arena.counters()
    assert counters.largest_hole_bytes == counters.reserved_bytes
    assert arena.alloc(4 * KIB) == low


def test_addresses_are_aligned_and_sizes_rounded_to_64_bytes(arena: _core.Arena) -> None:
    for nbytes in (1, 63, 64, 65, 1000):
        before = used(arena)
        assert arena.alloc(nbytes) % 64 == 0
        assert used(arena) - before == -(-nbytes // 64) * 64


def test_cap_limits_addresses_so_fragmentation_counts(arena: _core.Arena) -> None:
    arena.set_cap(10 * KIB)
    low = arena.alloc(4 * KIB)
    arena.alloc(2 * KIB)
    arena.alloc(4 * KIB)
    arena.free(low)
    assert used(arena) == 6 * KIB
    with pytest.raises(DeviceMemoryExceeded, match=r"largest free hole 4096 bytes"):
        arena.alloc(4 * KIB + 1)
    assert arena.alloc(4 * KIB) == low


def test_refusal_names_asked_used_and_cap_and_changes_nothing(arena: _core.Arena) -> None:
    arena.set_cap(1 << 20)
    arena.alloc(512 * KIB)
    with pytest.raises(DeviceMemoryExceeded) as refused:
        arena.alloc(600 * KIB)
    for part in (
        "asked 614400 bytes (600.0 KiB)",
        "used 524288 bytes (512.0 KiB)",
        "cap 1048576 bytes (1.0 MiB)",
        "raise the cap",
    ):
        assert part in str(refused.value)
    counters = arena.counters()
    assert (counters.used_bytes, counters.allocations) == (512 * KIB, 1)
    arena.alloc(512 * KIB)


def test_cap_moves_at_run_time_and_none_removes_it(arena: _core.Arena) -> None:
    arena.set_cap(KIB)
    with pytest.raises(DeviceMemoryExceeded):
        arena.alloc(2 * KIB)
    arena.set_cap(2 * KIB)
    arena.free(arena.alloc(2 * KIB))
    arena.set_cap(None)
    assert arena.counters().cap_bytes is None
    arena.alloc(1 << 20)


def test_cap_that_is_no_multiple_of_the_alignment_is_never_exceeded(arena: _core.Arena) -> None:
    arena.set_cap(100)
    arena.alloc(64)
    with pytest.raises(DeviceMemoryExceeded):
        arena.alloc(1)
    assert arena.counters().cap_bytes == 100


def test_cap_below_live_memory_is_refused(arena: _core.Arena) -> None:
    low, _high = arena.alloc(4 * KIB), arena.alloc(KIB)
    arena.free(low)
    with pytest.raises(InvalidDeviceArgument, match=r"ends at 5120 bytes .*\(1024 bytes.* in use"):
        arena.set_cap(5 * KIB - 1)
    assert arena.counters().cap_bytes is None
    arena.set_cap(5 * KIB)


def test_cap_of_zero_is_refused(arena: _core.Arena) -> None:
    with pytest.raises(InvalidDeviceArgument, match="None for no cap"):
        arena.set_cap(0)


def test_reserved_range_is_the_limit_without_a_cap(arena: _core.Arena) -> None:
    reserved = arena.counters().reserved_bytes
    for nbytes in (reserved + 1, 2**63, 2**64 - 1):
        with pytest.raises(DeviceMemoryExceeded, match="no cap, reserved range"):
            arena.alloc(nbytes)
    assert arena.alloc(reserved)


def test_reservation_falls_back_to_what_the_system_gives() -> None:
    arena = _core.Arena(1 << 60)
    assert 1 << 30 <= arena.counters().reserved_bytes < 1 << 60


def test_peaks_and_high_water(arena: _core.Arena) -> None:
    low, high = arena.alloc(4 * KIB), arena.alloc(2 * KIB)
    arena.free(low)
    counters = arena.counters()
    assert (counters.used_bytes, counters.peak_bytes) == (2 * KIB, 6 * KIB)
    assert counters.high_water_bytes == 6 * KIB
    arena.reset_peak()
    counters = arena.counters()
    assert (counters.peak_bytes, counters.high_water_bytes) == (2 * KIB, 6 * KIB), "a hole below"
    arena.free(high)
    arena.reset_peak()
    counters = arena.counters()
    assert (counters.peak_bytes, counters.high_water_bytes) == (0, 0)
    assert (counters.allocations, counters.live_allocations) == (2, 0)


def test_wrong_frees_are_refused_and_change_nothing(arena: _core.Arena) -> None:
    block = arena.alloc(KIB)
    neighbour = arena.alloc(KIB)
    arena.free(block)
    for address, why in (
        (block, "freed before"),
        (neighbour + 64, "middle of one"),
        (0, "not an arena address"),
        (id(arena), "not an arena address"),
    ):
        with pytest.raises(InvalidDeviceArgument, match=why):
            arena.free(address)
    counters = arena.counters()
    assert (counters.used_bytes, counters.live_allocations) == (KIB, 1)


def test_zero_bytes_are_refused(arena: _core.Arena) -> None:
    with pytest.raises(InvalidDeviceArgument, match="at least 1 byte"):
        arena.alloc(0)


def test_ownership_and_liveness(arena: _core.Arena) -> None:
    block = arena.alloc(KIB)
    end = block + arena.counters().reserved_bytes
    assert arena.owns(block)
    assert arena.owns(end - 1)
    assert not arena.owns(end)
    assert not arena.owns(block - 1)
    assert arena.is_live(block + 24, KIB - 24)
    assert not arena.is_live(block + 24, KIB)
    assert not arena.is_live(block - 1, 1)
    arena.alloc(KIB)
    arena.free(block)
    assert not arena.is_live(block, 1)


def test_poison_fills_fresh_and_freed_memory_with_nan(arena: _core.Arena, view) -> None:
    arena.set_poison(True)
    block = arena.alloc(KIB)
    memory = view(block, KIB)
    assert np.isnan(memory.view(np.float32)).all()
    memory[:] = 0
    arena.free(block)
    for dtype in (np.float16, np.float32, np.float64):
        assert np.isnan(memory.view(dtype)).all()
    # bfloat16 is the upper half of float32: exponent all ones, fraction not zero.
    assert (memory.view(np.uint16) == 0xFFFF).all()


def test_contents_survive_without_poison(arena: _core.Arena, view) -> None:
    block = arena.alloc(KIB)
    view(block, KIB)[:] = 7
    arena.free(block)
    assert (view(arena.alloc(KIB), KIB) == 7).all()
