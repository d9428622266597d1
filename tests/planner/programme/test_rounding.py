"""Whole counts from fractional ones, and the solver's answer checked in whole bytes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_planner.programme._blocks import useful
from memo_planner.programme._counts import (
    BlockCounts,
    branch_and_bound,
    improve,
    relax,
    round_counts,
    solve_counts,
)


@st.composite
def problems(draw: st.DrawFn) -> BlockCounts:
    size = draw(st.integers(1, 8))
    column = st.lists(st.integers(0, 30), min_size=size, max_size=size)
    room = st.one_of(st.none(), st.integers(0, 100))
    kept, swapped, cost = (np.array(draw(column), np.float64) for _ in range(3))
    return BlockCounts(
        num_blocks=draw(st.integers(1, 5)),
        cost_s=cost,
        kept_bytes=kept,
        swapped_bytes=swapped,
        gap_s=1e-6,
        device_room_bytes=draw(room),
        host_room_bytes=draw(room),
    )


def best(problem: BlockCounts) -> float | None:
    """Least cost over every multiset of policies."""
    size = len(problem.cost_s)
    totals = [
        sum(problem.cost_s[list(chosen)])
        for chosen in itertools.combinations_with_replacement(range(size), problem.num_blocks)
        if all(sum(b[list(chosen)]) <= room for b, room in problem.rooms)
    ]
    return min(totals, default=None)


@settings(max_examples=80, deadline=None)
@given(problems())
def test_counts_are_optimal_and_fit(problem: BlockCounts) -> None:
    wanted = best(problem)
    if wanted is None:
        return
    relaxed = relax(problem)
    assert relaxed.bound_s <= wanted + 1e-6
    assert problem.bound_s(relaxed.prices) == pytest.approx(relaxed.bound_s, abs=1e-4)
    rounded = round_counts(problem, relaxed.counts)
    if rounded is not None:
        assert problem.fits(rounded)
        counts = solve_counts(problem, relaxed, rounded)
        assert problem.fits(counts)
        assert problem.total_s(counts) == pytest.approx(wanted, abs=1e-5)
    if problem.num_blocks <= 2:
        assert rounded is not None
        assert problem.total_s(rounded) == wanted


@settings(max_examples=80, deadline=None)
@given(problems(), st.lists(st.floats(0, 20), min_size=2, max_size=2))
def test_no_counts_undercut_the_bound_at_any_prices(
    problem: BlockCounts, prices: list[float]
) -> None:
    wanted = best(problem)
    if wanted is not None:
        assert problem.bound_s(tuple(prices[: len(problem.rooms)])) <= wanted + 1e-9


@settings(max_examples=80, deadline=None)
@given(problems(), st.data())
def test_improving_keeps_what_fits_and_never_costs_more(
    problem: BlockCounts, data: st.DataObject
) -> None:
    size = len(problem.cost_s)
    chosen = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    counts = np.bincount(chosen, minlength=size)
    some = replace(problem, num_blocks=len(chosen))
    if not some.fits(counts):
        return
    better = improve(some, counts)
    assert some.fits(better)
    assert some.total_s(better) <= some.total_s(counts)
    if some.num_blocks <= 2:
        assert some.total_s(better) == best(some)


def test_a_byte_too_much_does_not_fit() -> None:
    problem = BlockCounts(
        num_blocks=2,
        cost_s=np.array([0.0, 1.0]),
        kept_bytes=np.array([2.0**40 + 1, 0.0]),
        swapped_bytes=np.zeros(2),
        gap_s=1e-6,
        device_room_bytes=2**41 + 1,
        host_room_bytes=None,
    )
    assert not problem.fits(np.array([2, 0]))
    assert problem.fits(np.array([1, 1]))
    assert not problem.fits(np.array([1, 0]))
    relaxed = relax(problem)
    assert solve_counts(problem, relaxed, np.array([0, 2])).tolist() == [1, 1]
    assert branch_and_bound(problem).tolist() == [1, 1]


def test_only_policies_that_nothing_beats_are_offered() -> None:
    kept = np.array([0.0, 0.0, 5.0, 5.0, 5.0])
    swapped = np.array([9.0, 9.0, 0.0, 3.0, 0.0])
    cost = np.array([1.0, 2.0, 1.0, 0.5, 1.0])
    assert useful(kept, swapped, cost).tolist() == [0, 3, 2]
