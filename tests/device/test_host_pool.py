"""The host pool: exact sizes, reuse, and a cap that holds for what is used and what is cached."""

import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_train import _core
from memo_train.device import InvalidDeviceArgument
from memo_train.device.errors import HostMemoryExceeded

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize(
    ("asked", "pages"), [(1, 1), (PAGE, 1), (PAGE + 1, 2), (3 * PAGE - 1, 3), (1000 * PAGE, 1000)]
)
def test_sizes_are_rounded_to_pages_only(pool: _core.HostPool, asked: int, pages: int) -> None:
    assert pool.alloc(asked) % PAGE == 0
    assert pool.counters().used_bytes == pages * PAGE


def test_refusal_names_asked_used_and_cap_and_changes_nothing(pool: _core.HostPool) -> None:
    pool.set_cap(4 * PAGE)
    pool.alloc(3 * PAGE)
    with pytest.raises(HostMemoryExceeded) as refused:
        pool.alloc(PAGE + 1)
    for part in (f"asked {PAGE + 1} bytes", f"used {3 * PAGE} bytes", f"cap {4 * PAGE} bytes"):
        assert part in str(refused.value)
    assert pool.counters().used_bytes == 3 * PAGE
    pool.alloc(PAGE)


def test_cap_that_is_no_whole_page_is_never_exceeded(pool: _core.HostPool) -> None:
    pool.set_cap(PAGE + 10)
    with pytest.raises(HostMemoryExceeded):
        pool.alloc(PAGE + 1)
    pool.alloc(PAGE)


@pytest.mark.parametrize("asked", [1 << 62, 2**64 - 1])
def test_absurd_sizes_are_refused_cleanly(pool: _core.HostPool, asked: int) -> None:
    with pytest.raises(HostMemoryExceeded):
        pool.alloc(asked)
    assert pool.counters().used_bytes == 0


def test_freed_range_serves_the_next_request_of_its_size(pool: _core.HostPool) -> None:
    first = pool.alloc(5 * PAGE)
    pool.free(first)
    assert pool.counters().cached_bytes == 5 * PAGE
    assert pool.alloc(5 * PAGE) == first
    counters = pool.counters()
    assert (counters.used_bytes, counters.cached_bytes) == (5 * PAGE, 0)


def test_cached_ranges_give_way_under_the_cap(pool: _core.HostPool) -> None:
    pool.set_cap(8 * PAGE)
    for block in [pool.alloc(2 * PAGE) for _ in range(4)]:
        pool.free(block)
    pool.alloc(5 * PAGE)
    counters = pool.counters()
    assert counters.used_bytes == 5 * PAGE
    assert counters.cached_bytes == 2 * PAGE


def test_lower_cap_drops_cached_ranges(pool: _core.HostPool) -> None:
    keep = pool.alloc(PAGE)
    for block in [pool.alloc(2 * PAGE) for _ in range(3)]:
        pool.free(block)
    pool.set_cap(4 * PAGE)
    assert pool.counters().cached_bytes == 2 * PAGE
    pool.free(keep)
    pool.alloc(4 * PAGE)
    assert pool.counters().cached_bytes == 0


def test_cap_below_use_or_zero_is_refused(pool: _core.HostPool) -> None:
    pool.alloc(2 * PAGE)
    with pytest.raises(InvalidDeviceArgument, match=f"below the {2 * PAGE} bytes"):
        pool.set_cap(2 * PAGE - 1)
    with pytest.raises(InvalidDeviceArgument, match="None for no cap"):
        pool.set_cap(0)
    assert pool.counters().cap_bytes is None


def test_peak_counts_use_not_cache(pool: _core.HostPool) -> None:
    pool.free(pool.alloc(6 * PAGE))
    pool.alloc(PAGE)
    assert pool.counters().peak_bytes == 6 * PAGE
    pool.reset_peak()
    assert pool.counters().peak_bytes == PAGE


def test_wrong_frees_are_refused(pool: _core.HostPool) -> None:
    block = pool.alloc(2 * PAGE)
    pool.free(block)
    other = pool.alloc(3 * PAGE)
    for address in (block, other + PAGE, 0):
        with pytest.raises(InvalidDeviceArgument, match="freed before"):
            pool.free(address)
    assert pool.counters().used_bytes == 3 * PAGE


def test_poison_fills_fresh_and_freed_ranges(pool: _core.HostPool, view) -> None:
    pool.set_poison(True)
    block = pool.alloc(PAGE)
    memory = view(block, PAGE)
    assert (memory == 0xFF).all()
    memory[:] = 0
    pool.free(block)
    assert (memory == 0xFF).all()


def test_what_is_reserved_serves_ranges_of_any_sizes(pool: _core.HostPool) -> None:
    pool.reserve(10 * PAGE)
    assert (pool.counters().used_bytes, pool.counters().cached_bytes) == (0, 10 * PAGE)
    for sizes in ((3, 3, 4), (10,), (1, 2, 7), (5, 5)):
        ranges = [pool.alloc(pages * PAGE) for pages in sizes]
        assert max(ranges) - min(ranges) < 10 * PAGE
        assert (pool.counters().used_bytes, pool.counters().cached_bytes) == (10 * PAGE, 0)
        for address in ranges:
            pool.free(address)
        assert pool.counters().cached_bytes == 10 * PAGE


def test_a_reservation_is_kept_and_grows_in_one_piece(pool: _core.HostPool) -> None:
    pool.reserve(4 * PAGE)
    first = pool.alloc(PAGE)
    pool.free(first)
    pool.reserve(2 * PAGE)
    assert pool.alloc(4 * PAGE) == first
    pool.free(first)
    pool.reserve(6 * PAGE)
    pool.alloc(6 * PAGE)
    assert pool.counters().cached_bytes == 0


def test_no_more_is_reserved_than_the_cap_allows(pool: _core.HostPool) -> None:
    pool.set_cap(5 * PAGE + 10)
    pool.reserve(1 << 62)
    assert pool.counters().cached_bytes == 5 * PAGE
    pool.set_cap(3 * PAGE)
    assert pool.counters().cached_bytes == 0
    pool.alloc(3 * PAGE)


def test_an_idle_reservation_gives_way_and_a_busy_one_is_told_of(pool: _core.HostPool) -> None:
    pool.set_cap(4 * PAGE)
    pool.reserve(2 * PAGE)
    other = pool.alloc(3 * PAGE)
    assert pool.counters().cached_bytes == 0
    pool.free(other)
    pool.reserve(4 * PAGE)
    ranges = [pool.alloc(PAGE) for _ in range(4)]
    for address in ranges[::2]:
        pool.free(address)
    with pytest.raises(HostMemoryExceeded, match="what is free is in smaller pieces"):
        pool.alloc(2 * PAGE)
    assert pool.alloc(PAGE) in ranges


@settings(max_examples=100, deadline=None)
@given(
    reserved_pages=st.integers(0, 30),
    script=st.lists(st.tuples(st.booleans(), st.integers(1, 20 * PAGE)), max_size=40),
    cap_pages=st.none() | st.integers(1, 40),
)
def test_used_and_cached_stay_under_the_cap_and_the_most_ever_used(
    script, cap_pages, reserved_pages
) -> None:
    pool = _core.HostPool()
    pool.set_cap(None if cap_pages is None else cap_pages * PAGE)
    pool.reserve(reserved_pages * PAGE)
    live: dict[int, int] = {}
    peak = 0
    for is_alloc, value in script:
        size = -(-value // PAGE) * PAGE
        if is_alloc and (cap_pages is None or sum(live.values()) + size <= cap_pages * PAGE):
            try:
                address = pool.alloc(value)
            except HostMemoryExceeded:  # what is free is in smaller pieces
                assert reserved_pages > 0
                continue
            assert all(address + size <= at or at + live[at] <= address for at in live)
            live[address] = size
        elif is_alloc:
            with pytest.raises(HostMemoryExceeded):
                pool.alloc(value)
        elif live:
            address = sorted(live)[value % len(live)]
            del live[address]
            pool.free(address)
        peak = max(peak, sum(live.values()))
        counters = pool.counters()
        assert counters.used_bytes == sum(live.values())
        assert counters.peak_bytes == peak
        together = counters.used_bytes + counters.cached_bytes
        assert together <= peak + reserved_pages * PAGE
        assert cap_pages is None or together <= cap_pages * PAGE
