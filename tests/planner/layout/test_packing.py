"""The native packer and the integer programme against brute force, bounds and each other."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo_planner.errors import InvalidInput
from memo_planner.layout import NoPlacement, PackingProblem, faults, pack
from memo_planner.layout._levels import pack_mip
from tests.planner.layout.problems import cut_rectangle, lowest_peak, problem_of

ROWS = st.tuples(st.integers(0, 8), st.integers(1, 5), st.integers(1, 9)).map(
    lambda row: (row[0], row[0] + row[1], row[2])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), st.sampled_from([1, 4]))
def test_the_packer_finds_and_proves_the_lowest_peak(rows: list, alignment: int) -> None:
    problem = problem_of(rows, alignment)
    placement = pack(problem, seconds=10)
    assert faults(placement) == []
    assert placement.peak_bytes == placement.lower_bound_bytes == lowest_peak(problem)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=2, max_size=6))
def test_a_capacity_below_the_lowest_peak_is_refused_with_proof(rows: list) -> None:
    problem = problem_of(rows)
    best = lowest_peak(problem)
    if best == int(problem.size_bytes.max()):
        return
    with pytest.raises(NoPlacement, match=f"no placement within {best - 1} bytes exists"):
        pack(problem, capacity_bytes=best - 1, seconds=10)


@settings(max_examples=25, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=9))
def test_integer_programme_and_packer_agree_where_both_prove(rows: list) -> None:
    problem = problem_of(rows)
    reference = pack_mip(problem, seconds=20)
    assert faults(reference) == []
    if reference.gap == 0:
        assert pack(problem, seconds=20).peak_bytes == reference.peak_bytes


@pytest.mark.parametrize(("seed", "num_buffers"), [(0, 150), (1, 150), (2, 200), (3, 200)])
def test_perfect_packings_are_found_again(seed: int, num_buffers: int) -> None:
    problem = cut_rectangle(seed, num_buffers)
    placement = pack(problem, capacity_bytes=1024, seconds=30)
    assert faults(placement, 1024) == []
    assert placement.peak_bytes == 1024


def test_exact_search_goes_on_where_first_fit_ends() -> None:
    placement = pack(cut_rectangle(2, 200), seconds=30)
    assert placement.gap == 0
    assert placement.nodes > 0


def test_the_same_seed_gives_the_same_placement() -> None:
    problem = cut_rectangle(4, 150)
    first, second = (pack(problem, capacity_bytes=1024, seconds=60) for _ in range(2))
    assert np.array_equal(first.offset_bytes, second.offset_bytes)
    assert first.nodes == second.nodes


def test_the_deadline_is_kept_and_the_reason_says_what_was_reached() -> None:
    problem = cut_rectangle(0, 900)
    begun_s = time.monotonic()
    with pytest.raises(NoPlacement, match=r"found in 0\.5 s; best peak .*lower bound 1,024"):
        pack(problem, capacity_bytes=1024, seconds=0.5)
    assert time.monotonic() - begun_s < 8  # 0.5 s


def test_times_apart_are_packed_apart() -> None:
    problem = problem_of([(0, 2, 5), (2, 4, 5), (4, 6, 5)])
    placement = pack(problem)
    assert placement.peak_bytes == 5
    assert placement.nodes == 0


def test_sizes_count_as_rounded_up_to_the_alignment() -> None:
    placement = pack(problem_of([(0, 2, 100), (1, 3, 30)], alignment_bytes=64))
    assert sorted(placement.offset_bytes.tolist()) in ([0, 64], [0, 128])
    assert placement.peak_bytes == placement.lower_bound_bytes == 192


def test_no_buffers_need_no_bytes() -> None:
    assert pack(problem_of([(0, 1, 1)])).peak_bytes == 1
    empty = PackingProblem(ids=(), lower=[], upper=[], size_bytes=[])
    assert pack(empty, capacity_bytes=1).peak_bytes == 0


def test_many_buffers_alive_at_once_neither_hang_nor_fill_memory() -> None:
    count = 200_000
    lower = np.arange(count, dtype=np.int64)
    problem = PackingProblem(
        ids=tuple(map(str, range(count))),
        lower=lower,
        upper=2 * count - lower,
        size_bytes=np.full(count, 512),
    )
    placement = pack(problem, seconds=20)
    assert placement.peak_bytes == placement.lower_bound_bytes == 512 * count
    assert faults(placement) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity_bytes": 0}, "capacity is 0"),
        ({"capacity_bytes": 9}, "buffer 'b1' alone takes 10 bytes; the capacity is 9"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": -1.0}, "seconds is -1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        pack(problem_of([(0, 2, 3), (1, 3, 10)]), **options)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"lower": [2], "upper": [2]}, "upper is 2; it must be above its lower"),
        ({"size_bytes": [0]}, "size_bytes is 0; it must be 1 or more"),
        ({"size_bytes": [1.5]}, "array of float64"),
        ({"size_bytes": [2**60], "alignment_bytes": 2**60}, "add up to"),
        ({"alignment_bytes": 0}, "alignment_bytes is 0"),
        ({"lower": [0, 1]}, "shape"),
    ],
)
def test_bad_problems_are_refused(columns: dict, message: str) -> None:
    good = {"ids": ("a",), "lower": [0], "upper": [3], "size_bytes": [8]}
    with pytest.raises(InvalidInput, match=message):
        PackingProblem(**(good | columns))
