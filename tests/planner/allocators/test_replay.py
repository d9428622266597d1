"""Steps served by allocators, by the layout and by glibc; what a run says."""

import numpy as np
import pytest

from memo_planner.allocators import (
    AllocatorRun,
    BestFitAllocator,
    CachingAllocator,
    ComparisonOptions,
    compare_allocators,
    planned,
    replay,
)
from memo_planner.allocators._glibc import can_measure, measure_glibc
from memo_planner.errors import InvalidInput
from memo_planner.layout import PackingProblem
from memo_planner.layout._packing import requests_of_problem
from tests.planner.allocators.steps import MIB, PAPER, step

glibc_only = pytest.mark.skipif(not can_measure(), reason="the C library has no mallinfo2")


def test_a_step_starts_with_what_lived_before_and_ends_with_nothing() -> None:
    requests = step("1!40 2:60 -1 3:40", MIB)
    allocator = CachingAllocator()
    run = replay(requests, allocator, "caching").run
    assert run.allocated_peak_bytes == 100 * MIB
    assert allocator.tally.allocated_bytes == 0
    assert run.num_segments == 2  # 3 finds the segment of 1


def test_lifetimes_are_half_open() -> None:
    """What is freed at a time is there for what is asked for at it."""
    rows = {"lower": np.array([0, 5]), "upper": np.array([5, 9]), "size_bytes": np.array([512, 99])}
    requests = requests_of_problem(PackingProblem(ids=("a", "b"), **rows))
    found = replay(requests, BestFitAllocator(), "best fit")
    assert found.addresses.tolist() == [0, 0]
    assert found.run.reserved_peak_bytes == 512


def test_later_steps_find_the_cache_of_earlier_ones() -> None:
    """Step 1: 2 and 4 (30) share the 60 of 1. Step 2: 2 takes the 40, 3 the 60, nothing is left."""
    requests = step("1:60 -1 2:30 3:40 4:30 -2 -3 -4", MIB)
    reserved = [
        replay(requests, CachingAllocator(), "caching", num_steps=num).run.reserved_peak_bytes
        for num in (1, 2, 3)
    ]
    assert reserved == [100 * MIB, 130 * MIB, 130 * MIB]


def test_where_memory_runs_out_the_run_ends_and_says_at_what() -> None:
    requests = step("7:40 8:40 9:40 -7 -8 -9", MIB)
    found = replay(requests, CachingAllocator(cap_bytes=100 * MIB), "caching", num_steps=3)
    assert found.run.refused_id == 9
    assert found.addresses.tolist() == [0, 40 * MIB, -1]
    assert (found.run.num_retries, found.run.reserved_peak_bytes) == (1, 80 * MIB)


def test_a_run_that_contradicts_itself_is_refused() -> None:
    figures = {"allocator": "x", "requested_peak_bytes": 1}
    with pytest.raises(InvalidInput, match="x has 3 bytes allocated of only 2 reserved"):
        AllocatorRun(**figures, allocated_peak_bytes=3, reserved_peak_bytes=2)
    empty = AllocatorRun(**figures, allocated_peak_bytes=0, reserved_peak_bytes=0)
    assert empty.fragmentation == 0.0


def test_the_layout_has_no_fragmentation_and_keeps_to_a_cap() -> None:
    requests = step(PAPER, MIB)
    run = planned(requests, "layout").run
    assert run.reserved_peak_bytes == run.allocated_peak_bytes == 2432 * MIB
    assert run.fragmentation == 0.0
    assert planned(requests, "layout", cap_bytes=2432 * MIB).run.refused_id is None
    assert planned(requests, "layout", cap_bytes=2432 * MIB - 1).run.refused_id is not None


def test_sizes_of_the_layout_are_rounded_to_its_alignment() -> None:
    run = planned(step("1:1 2:65"), "layout", alignment_bytes=64).run
    assert (run.requested_peak_bytes, run.allocated_peak_bytes) == (66, 192)
    assert run.reserved_peak_bytes == 192


@glibc_only
def test_glibc_maps_what_is_very_large_and_gives_it_back() -> None:
    """Above 32 MiB each request is a mapping of its own, in pages of 4 KiB with a header."""
    run = measure_glibc(step("1:64 2:64 -1 3:64 -2 -3", MIB), "glibc", num_steps=2)
    assert run.is_measured
    assert run.allocated_peak_bytes == 128 * MIB
    assert 0 < run.reserved_peak_bytes - 128 * MIB <= 2 * 2 * 4096


@glibc_only
def test_glibc_keeps_holes_that_it_cannot_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second of 400 requests is freed; twice as large ones then find no hole."""
    monkeypatch.setenv("MALLOC_TOP_PAD_", str(512 * MIB))  # is not handed to the measured process
    count = 400
    asked = " ".join(f"{k}:10000" for k in range(count))
    freed = " ".join(f"-{k}" for k in range(0, count, 2))
    again = " ".join(f"{count + k}:20000" for k in range(count // 2))
    run = measure_glibc(step(f"{asked} {freed} {again}"), "glibc")
    assert run.allocated_peak_bytes == count // 2 * 30000
    assert run.reserved_peak_bytes >= count * 10000 + count // 2 * 20000
    assert run.reserved_peak_bytes < 16 * MIB


@glibc_only
def test_glibc_refuses_what_the_system_does() -> None:
    run = measure_glibc(step("1:1024 5:4611686018427387 -1 -5", 64), "glibc")
    assert run.refused_id == 5
    assert run.allocated_peak_bytes == 1024 * 64


def test_all_side_by_side() -> None:
    runs = compare_allocators(step(PAPER, MIB))
    names = [run.allocator for run in runs if not run.is_measured]
    assert names == [
        "caching allocator",
        "expandable segments",
        "best fit",
        "two-ended first fit",
        "layout, 512 B",
        "layout, 64 B",
    ]
    reserved = {run.allocator: run.reserved_peak_bytes // MIB for run in runs}
    assert reserved["layout, 512 B"] == reserved["layout, 64 B"] == 2432
    assert reserved["best fit"] == 2688
    capped = compare_allocators(step(PAPER, MIB), ComparisonOptions(cap_bytes=2432 * MIB))
    assert [run.allocator for run in capped if run.refused_id is None] == [
        "layout, 512 B",
        "layout, 64 B",
    ]
    with pytest.raises(InvalidInput, match="num_steps is 0"):
        ComparisonOptions(num_steps=0)
    with pytest.raises(InvalidInput, match="alignment_bytes is 0"):
        replay(step(PAPER), BestFitAllocator(alignment_bytes=0), "best fit")
