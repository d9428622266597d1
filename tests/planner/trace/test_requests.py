"""Requests: what they refuse, and the bytes they count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memo_planner import InvalidInput
from memo_planner.trace import BEFORE, NOWHERE, PHASES, EventLog, Requests, requests_of_events

FORWARD = PHASES.index("forward")


def columns(num: int = 3, **options: Any) -> dict[str, Any]:
    """Requests i living [i + 1, i + 4) of 64 bytes each."""
    return {
        "ids": list(range(num)),
        "malloc_times": [i + 1 for i in range(num)],
        "free_times": [i + 4 for i in range(num)],
        "size_bytes": [64] * num,
        "phases": [FORWARD] * num,
        "blocks": [0] * num,
        "tiles": [NOWHERE] * num,
        "ops": [0] * num,
        "op_names": ("",),
        "end_time": num + 4,
    } | options


def test_live_bytes_count_half_open_lifetimes() -> None:
    requests = Requests(**columns())
    assert requests.live_bytes().tolist() == [0, 64, 128, 192, 128, 64, 0]
    assert requests.peak_bytes() == 192
    assert not requests.outlive.any()


def test_a_request_may_outlive_the_step_or_be_older_than_it() -> None:
    requests = Requests(
        **columns(phases=[BEFORE, FORWARD, FORWARD], malloc_times=[0, 2, 3], free_times=[4, 7, 5])
    )
    assert requests.outlive.tolist() == [False, True, False]
    assert requests.live_bytes().tolist() == [64, 64, 128, 192, 128, 64, 64]


def test_no_requests_at_all() -> None:
    assert Requests(**columns(0, end_time=1)).peak_bytes() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"free_times": [4, 1, 6]}, "request 1 is freed at 1, but made at 2"),
        ({"free_times": [4, 2, 6]}, "request 1 is freed at 2, but made at 2"),
        ({"free_times": [4, 5, 8]}, "after the step's end"),
        ({"size_bytes": [64, -1, 64]}, r"size_bytes\[1\] is -1; it must be from 1"),
        ({"size_bytes": [64, 0, 64]}, r"size_bytes\[1\] is 0"),
        ({"size_bytes": [64, float("nan"), 64]}, r"size_bytes\[1\] is nan; .* whole number"),
        ({"size_bytes": np.array([64, np.nan, 64])}, r"size_bytes\[\d\] is .*; .* whole number"),
        ({"size_bytes": [64, True, 64]}, r"size_bytes\[1\] is True"),
        ({"size_bytes": [64, None, 64]}, r"size_bytes\[1\] is None"),
        ({"size_bytes": [64, 10**400, 64]}, r"size_bytes\[1\] .* far too large"),
        ({"size_bytes": [2**60] * 3}, "all requests together"),
        ({"size_bytes": np.array([[64], [64]])}, "2 dimensions"),
        ({"size_bytes": np.array([2**63, 1, 1], np.uint64)}, "far too large"),
        ({"size_bytes": "abc"}, "must be a list"),
        ({"ids": [0, 1, 0]}, "the id 0 occurs twice"),
        ({"ids": [0, 1]}, "differ in length"),
        ({"malloc_times": [2, 1, 3]}, "request 1 is made at 1, before the one above it"),
        ({"malloc_times": [0, 2, 3]}, "0 belongs to phase before"),
        ({"phases": [FORWARD, BEFORE, FORWARD]}, "0 belongs to phase before"),
        ({"phases": [9, 1, 1]}, r"phases\[0\] is 9"),
        ({"ops": [0, 1, 0]}, r"ops\[1\] is 1"),
        ({"op_names": ("", "a", "a")}, "each name once"),
        ({"op_names": ["", "a"]}, "tuple of strings"),
        ({"end_time": 10**15}, "time counts events"),
        ({"end_time": 0}, "end_time is 0"),
    ],
)
def test_wrong_requests_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Requests(**columns(**options))


def log(events: list[tuple[int, int, int]]) -> EventLog:
    """A log from (is_free, address, bytes)."""
    num = len(events)
    free, address, size = ([event[i] for event in events] for i in range(3))
    zeros = np.zeros(num, np.int64)
    return EventLog(
        is_free=free,  # type: ignore[arg-type]
        addresses=address,  # type: ignore[arg-type]
        size_bytes=size,  # type: ignore[arg-type]
        phases=zeros + FORWARD,
        blocks=zeros,
        tiles=zeros,
        ops=zeros,
        op_names=("",),
    )


def test_events_become_requests() -> None:
    """0 is old and freed; 64 is used twice; the last lives on."""
    requests = requests_of_events(
        log([(0, 64, 128), (1, 0, 64), (1, 64, 128), (0, 64, 64), (0, 0, 64), (1, 64, 64)])
    )
    assert requests.malloc_times.tolist() == [0, 1, 4, 5]
    assert requests.free_times.tolist() == [2, 3, 6, 7]
    assert requests.size_bytes.tolist() == [64, 128, 64, 64]
    assert requests.outlive.tolist() == [False, False, False, True]
    assert requests.phases.tolist() == [BEFORE, FORWARD, FORWARD, FORWARD]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([(0, 0, 64), (1, 0, 64), (1, 0, 64)], "event 2 .* address 0 is freed twice"),
        ([(0, 0, 64), (0, 0, 64)], "event 1 .* allocated where an allocation lives"),
        ([(0, 0, -64)], r"size_bytes\[0\] is -64"),
    ],
)
def test_impossible_events_are_named(events: list[tuple[int, int, int]], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        requests_of_events(log(events))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=60))
def test_events_give_the_bytes_that_a_plain_count_gives(steps: list[tuple[int, int]]) -> None:
    """Each step toggles an address; the live bytes are summed one event at a time."""
    live: dict[int, int] = {}
    events, used, expected = [], 0, [0]
    for address, size in steps:
        if address in live:
            size = live.pop(address)
            used -= size
            events.append((1, address, size))
        else:
            live[address] = size
            used += size
            events.append((0, address, size))
        expected.append(used)
    requests = requests_of_events(log(events))
    assert requests.live_bytes().tolist() == expected
    assert int(requests.outlive.sum()) == len(live)


def test_a_million_requests() -> None:
    """Twice a million events are read in a second or two, and counted."""
    num = 1_000_000
    rng = np.random.default_rng(7)
    times = rng.permutation(2 * num).reshape(num, 2) + 1
    times.sort(axis=1)
    times = times[np.argsort(times[:, 0])]
    sizes = rng.integers(1, 1000, num)
    zeros = np.zeros(num, np.int64)
    requests = Requests(
        ids=np.arange(num),
        malloc_times=times[:, 0],
        free_times=times[:, 1],
        size_bytes=sizes,
        phases=zeros + FORWARD,
        blocks=zeros,
        tiles=zeros,
        ops=zeros,
        op_names=("",),
        end_time=2 * num + 1,
    )
    live = requests.live_bytes()
    middle = num
    alive = (times[:, 0] <= middle) & (times[:, 1] > middle)
    assert live[middle] == sizes[alive].sum()
    assert live[-1] == 0
