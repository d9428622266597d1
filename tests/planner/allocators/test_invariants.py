"""What holds for every allocator and every step: drawn at random."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_planner.allocators import BestFitAllocator, CachingAllocator, event_order, replay
from memo_planner.allocators._blocks import Block
from memo_planner.allocators._caching import ExpandableAllocator
from memo_planner.allocators._fits import TwoEndedAllocator
from memo_planner.allocators._replay import Allocator, SimulatedOutOfMemory
from memo_planner.layout import Placement, faults, step_problem
from memo_planner.trace import Requests
from tests.planner.allocators.steps import LARGE, MIB, steps

MAKERS: dict[str, Callable[[int | None], Allocator]] = {
    "caching": lambda cap: CachingAllocator(cap_bytes=cap),
    "max_split": lambda cap: CachingAllocator(cap_bytes=cap, max_split_bytes=32 * MIB),
    "expandable": lambda cap: ExpandableAllocator(cap_bytes=cap),
    "best_fit": lambda cap: BestFitAllocator(cap_bytes=cap),
    "two_ended": lambda cap: TwoEndedAllocator(cap_bytes=cap or 2**40),
}
every_allocator = pytest.mark.parametrize("name", MAKERS)
caps = st.one_of(st.none(), st.integers(64 * MIB, 512 * MIB))


@every_allocator
@settings(max_examples=60, deadline=None)
@given(requests=steps())
def test_live_requests_never_overlap(name: str, requests: Requests) -> None:
    """By the validator of layouts, on the addresses of the second step."""
    found = replay(requests, MAKERS[name](None), name, num_steps=2)
    placement = Placement(
        problem=step_problem(requests),
        offset_bytes=found.addresses.copy(),
        lower_bound_bytes=requests.peak_bytes(),
        seconds=0.0,
        nodes=0,
    )
    assert faults(placement) == []


@every_allocator
@settings(max_examples=60, deadline=None)
@given(requests=steps(), cap=caps)
def test_counters_add_up(name: str, requests: Requests, cap: int | None) -> None:
    """At every event, also after refusals, which change nothing of what is allocated."""
    allocator = MAKERS[name](cap)
    tally, live, num = allocator.tally, dict[int, Block](), len(requests)
    for event in event_order(requests).tolist():
        if event < num:
            if event in live:
                allocator.free(live.pop(event))
        else:
            size = int(requests.size_bytes[event - num])
            try:
                live[event - num] = allocator.alloc(size)
            except SimulatedOutOfMemory:
                assert cap is not None
        assert tally.allocated_bytes == sum(block.size_bytes for block in live.values())
        assert tally.reserved_bytes >= tally.allocated_bytes + tally.inactive_split_bytes
        assert cap is None or tally.reserved_bytes <= cap
    assert tally.allocated_bytes == tally.inactive_split_bytes == 0


@pytest.mark.parametrize("name", ["expandable", "best_fit"])
@settings(max_examples=60, deadline=None)
@given(requests=steps(LARGE))
def test_when_all_is_freed_one_request_can_have_all_that_is_reserved(
    name: str, requests: Requests
) -> None:
    """One range that is whole again; of segments, `inactive_split_bytes` says so above."""
    allocator = MAKERS[name](None)
    replay(requests, allocator, name)
    reserved = allocator.tally.reserved_bytes
    allocator.alloc(reserved)
    assert allocator.tally.reserved_bytes == reserved
