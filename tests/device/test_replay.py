"""A step served by its layout: planned addresses while it goes as planned, right ones always."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_train import _core
from memo_train.device import InvalidDeviceArgument, get_cpu_device
from memo_train.device.errors import DeviceMemoryExceeded

REQUEST = np.dtype([("bytes", "<u8"), ("offset", "<u8")])
MARK = np.dtype([("value", "<u8"), ("first", "<u8")])
OUTSIDE = _core.StepLayout.OUTSIDE
PLACE = 7


def layout_of(
    requests: list[tuple[int, int]], marks: list[tuple[int, int]] | None = None, smallest: int = 64
) -> _core.StepLayout:
    """requests: (bytes, offset); marks: (value, first request)."""
    marks = [(PLACE, 0)] if marks is None else marks
    return _core.StepLayout(np.array(requests, REQUEST), np.array(marks, MARK), smallest)


def begun(arena: _core.Arena, layout: _core.StepLayout) -> int:
    """The step has begun and come to its first place; the start of the planned range."""
    first = arena.alloc(64)
    assert arena.begin_step(layout)
    arena.mark(PLACE)
    return first + 64


def test_requests_get_their_addresses_and_the_range_is_given_back(arena: _core.Arena) -> None:
    base = begun(arena, layout_of([(128, 64), (64, 0), (128, 64)]))
    first, second = arena.alloc(100), arena.alloc(64)
    assert (first, second) == (base + 64, base)
    assert arena.counters().planned_bytes == 192
    assert arena.is_live(first + 64, 64)
    assert not arena.is_live(first + 64, 65)
    arena.free(first)
    assert arena.alloc(128) == first
    counts = arena.end_step()
    assert (counts.planned, counts.departed, counts.missing, counts.first) == (3, 0, 0, None)
    assert arena.counters().used_bytes == 64 + 192
    assert arena.counters().planned_bytes == 0
    for address in (first, second, base - 64):
        arena.free(address)
    assert arena.counters().largest_hole_bytes == arena.counters().reserved_bytes
    assert arena.end_step() is None


def test_the_middle_of_a_request_is_live_where_later_ones_begin(arena: _core.Arena) -> None:
    base = begun(arena, layout_of([(256, 0), (64, 128)]))
    whole = arena.alloc(256)
    assert whole == base
    assert arena.is_live(base + 128, 128)
    assert not arena.is_live(base + 128, 129)
    arena.free(whole)
    assert not arena.is_live(base + 128, 64)
    assert arena.alloc(64) == base + 128
    assert arena.is_live(base + 128, 64)


@pytest.mark.parametrize("asked", [128, 256])
def test_another_size_goes_elsewhere_until_the_next_place(arena: _core.Arena, asked: int) -> None:
    layout = layout_of([(64, 0), (192, 64), (64, 256)], [(PLACE, 0), (8, 2)])
    base = begun(arena, layout)
    assert arena.alloc(64) == base
    assert arena.alloc(asked) >= base + layout.peak_bytes
    assert arena.alloc(64) >= base + layout.peak_bytes
    arena.mark(8)
    assert arena.alloc(64) == base + 256
    counts = arena.end_step()
    assert (counts.planned, counts.departed, counts.missing) == (2, 2, 1)
    first = counts.first
    assert (first.bytes, first.expected_bytes, first.place) == (asked, 192, PLACE)
    assert not first.in_use


def test_one_request_too_many_goes_elsewhere(arena: _core.Arena) -> None:
    base = begun(arena, layout_of([(64, 0)]))
    arena.alloc(64)
    assert arena.alloc(64) >= base + 64
    assert arena.end_step().first.expected_bytes == 0


def test_another_place_ends_the_plan(arena: _core.Arena) -> None:
    base = begun(arena, layout_of([(64, 0), (64, 64)], [(PLACE, 0), (8, 1)]))
    arena.mark(9)
    assert arena.alloc(64) >= base + 128
    counts = arena.end_step()
    assert (counts.planned, counts.departed, counts.missing) == (0, 1, 2)


def test_an_address_still_in_use_is_not_handed_out(arena: _core.Arena) -> None:
    """Also not when a request in between, which lay there as well, never came."""
    layout = layout_of([(64, 0), (128, 0), (64, 0)], [(PLACE, 0), (8, 2)])
    base = begun(arena, layout)
    assert arena.alloc(64) == base
    arena.mark(8)
    assert arena.alloc(64) != base
    counts = arena.end_step()
    assert (counts.departed, counts.missing, counts.first.in_use) == (1, 1, True)


def test_what_lives_on_and_what_is_small_lie_outside(arena: _core.Arena) -> None:
    base = begun(arena, layout_of([(128, OUTSIDE), (128, 0)], smallest=128))
    assert arena.alloc(64) >= base + 128
    assert arena.alloc(128) >= base + 128
    assert arena.alloc(128) == base
    counts = arena.end_step()
    assert (counts.planned, counts.outside, counts.small, counts.departed) == (1, 1, 1, 0)


def test_other_threads_are_not_served(arena: _core.Arena) -> None:
    base = begun(arena, layout_of([(64, 0)]))
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(arena.alloc(64)))
    other.start()
    other.join()
    assert found[0] >= base + 64
    assert arena.alloc(64) == base
    assert arena.end_step().departed == 0


def test_without_room_there_is_no_plan(arena: _core.Arena) -> None:
    arena.set_cap(1024)
    arena.alloc(512)
    assert not arena.begin_step(layout_of([(1024, 0)]))
    assert arena.end_step() is None


def test_a_plan_is_given_up_before_memory_is_refused(arena: _core.Arena) -> None:
    arena.set_cap(1024)
    assert arena.begin_step(layout_of([(64, 0), (64, 64), (768, 128)]))
    arena.mark(PLACE)
    addresses = [arena.alloc(64), arena.alloc(512)]
    with pytest.raises(DeviceMemoryExceeded):
        arena.alloc(512)
    counts = arena.end_step()
    assert (counts.planned, counts.given_up) == (1, True)
    for address in addresses:
        arena.free(address)
    assert arena.counters().largest_hole_bytes == 1024


def test_a_cap_cannot_go_below_a_planned_range(arena: _core.Arena) -> None:
    begun(arena, layout_of([(1024, 0)]))
    with pytest.raises(InvalidDeviceArgument, match="below live device memory"):
        arena.set_cap(512)


@pytest.mark.parametrize(
    ("requests", "marks", "wrong"),
    [
        ([(63, 0)], [], "63 bytes"),
        ([(64, 32)], [], "offset 32"),
        ([(0, 0)], [], "0 bytes"),
        ([(64, 2**63)], [], "beyond 2"),
        ([(64, 0)], [(1, 2)], "before request 2"),
        ([(64, 0)], [(1, 1), (2, 0)], "before request 0"),
    ],
)
def test_a_wrong_layout_is_refused(requests: Any, marks: Any, wrong: str) -> None:
    with pytest.raises(InvalidDeviceArgument, match=wrong):
        layout_of(requests, marks)


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[int]]:
    """Any requests at any addresses, marks between them, and what a step really does."""
    sizes = st.integers(1, 6).map(lambda n: 64 * n)
    offsets = st.one_of(st.integers(0, 12).map(lambda n: 64 * n), st.just(OUTSIDE))
    requests = draw(st.lists(st.tuples(sizes, offsets), min_size=1, max_size=30))
    firsts = sorted(draw(st.lists(st.integers(0, len(requests)), max_size=5)))
    marks = [(PLACE, 0), *((value, first) for value, first in enumerate(firsts))]
    return requests, marks, draw(st.lists(st.integers(0, 9), min_size=5, max_size=120))


@settings(max_examples=400, deadline=None)
@given(step=steps())
def test_live_memory_is_never_handed_out(step: Any) -> None:
    """However the layout is wrong for what the step does: late frees, skips, other sizes."""
    requests, marks, moves = step
    arena = _core.Arena(1 << 20)
    begun(arena, layout_of(requests, marks))
    live: dict[int, int] = {}
    asked = marked = 0
    for move in moves:
        if move <= 4 and asked < len(requests):  # as planned
            size, asked = requests[asked][0], asked + 1
        elif move == 5:  # something else
            size = 192
        elif move == 6 and marked + 1 < len(marks):
            marked += 1
            arena.mark(marks[marked][0])
            asked = max(asked, marks[marked][1])
            continue
        elif live:
            oldest = sorted(live)[move % len(live)]
            arena.free(oldest)
            del live[oldest]
            continue
        else:
            continue
        address = arena.alloc(size)
        for other, other_size in live.items():
            assert address + size <= other or other + other_size <= address
        live[address] = size
    arena.end_step()
    for address in live:
        arena.free(address)
    assert arena.counters().live_allocations == 1


def test_the_op_that_asked_is_told() -> None:
    device = get_cpu_device()
    weight = torch.ones(64, 64, requires_grad=True)
    assert device.begin_step(layout_of([(1 << 20, 0)], smallest=512))
    device.mark(PLACE)
    torch.mm(weight, weight)
    counts = device.end_step()
    assert counts is not None
    assert counts.first is not None
    assert counts.first.op == "mm"
    total = torch.mm(weight, weight).sum()
    device.begin_step(layout_of([(1 << 20, 0)], smallest=512))
    device.mark(PLACE)
    total.backward()
    counts = device.end_step()
    assert counts is not None
    assert counts.first is not None
    assert counts.first.op == "MmBackward0: mm"
