"""The validator finds what is wrong with a placement, and nothing wrong with a good one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_planner.layout import Placement, faults
from tests.planner.layout.problems import problem_of

ROWS = st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 12))


def placed(rows: list[tuple[int, int, int, int]], alignment_bytes: int = 1) -> Placement:
    problem = problem_of([(a, b, size) for a, b, size, _ in rows], alignment_bytes)
    offsets = np.array([row[3] for row in rows], np.int64)
    return Placement(
        problem=problem, offset_bytes=offsets, lower_bound_bytes=0, seconds=0.0, nodes=0
    )


@settings(max_examples=400, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=8))
def test_it_agrees_with_comparing_all_pairs(rows: list) -> None:
    rows = [(a, a + span, size, offset) for a, span, size, offset in rows]
    clash = any(
        a[0] < b[1] and b[0] < a[1] and a[3] < b[3] + b[2] and b[3] < a[3] + a[2]
        for k, a in enumerate(rows)
        for b in rows[:k]
    )
    assert bool(faults(placed(rows))) == clash


def test_reasons_name_the_buffers() -> None:
    (reason,) = faults(placed([(0, 4, 10, 0), (3, 6, 10, 9)]))
    assert reason.startswith("buffers 'b1' (lifetime [3, 6), bytes [9, 19)) and 'b0'")
    assert "overlap" in reason


def test_capacity_alignment_and_sign_are_checked() -> None:
    assert "negative offset" in faults(placed([(0, 1, 8, -1)]))[0]
    assert "no multiple of 4" in faults(placed([(0, 1, 8, 2)], 4))[0]
    assert "above the capacity 15" in faults(placed([(0, 1, 8, 8)]), 15)[0]
    assert faults(placed([(0, 1, 8, 8)]), 16) == []


def test_thousands_of_live_buffers_are_checked_in_one_walk() -> None:
    rows = [(i, 6000 + i, 4, 4 * i) for i in range(5000)]
    assert faults(placed(rows)) == []
    rows[2500] = (2500, 8500, 5, 10_000)
    assert "'b2501'" in faults(placed(rows))[0]
