"""Chrome traces: every slice ends, times never fall, counters say what the requests say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from memo_planner.errors import InvalidInput
from memo_planner.export import chrome_trace, write_chrome_trace
from memo_planner.trace import Requests
from tests.planner.allocators.steps import steps
from tests.planner.export.placed import ADDRESSES, placed_step


def check_structure(found: dict[str, Any]) -> None:
    events = [event for event in found["traceEvents"] if event["ph"] != "M"]
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    stack, opened = [], {}
    for event in events:
        if event["ph"] == "B":
            stack.append(event["name"])
        elif event["ph"] == "E":
            assert stack.pop() == event["name"]
        elif event["ph"] == "b":
            opened[event["id"]] = event["name"]
        elif event["ph"] == "e":
            assert opened.pop(event["id"]) == event["name"]
    assert stack == []
    assert opened == {}


def slices(found: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(name, begin, end) in the order of the begins."""
    stack, done = [], {}
    for event in found["traceEvents"]:
        if event["ph"] == "B":
            done[len(done)] = (event["name"], event["ts"], -1)
            stack.append(len(done) - 1)
        elif event["ph"] == "E":
            at = stack.pop()
            done[at] = (*done[at][:2], event["ts"])
    return list(done.values())


def counter(found: dict[str, Any], name: str) -> dict[int, int]:
    events = (e for e in found["traceEvents"] if e["ph"] == "C" and e["name"] == name)
    return {event["ts"]: event["args"]["bytes"] for event in events}


def test_phases_hold_blocks_and_blocks_hold_tiles() -> None:
    found = chrome_trace(placed_step(), ADDRESSES)
    check_structure(found)
    assert slices(found) == [
        ("forward", 1, 5),
        ("block 0", 1, 4),
        ("pre 0", 1, 2),
        ("pre 1", 2, 4),
        ("block 1", 4, 5),
        ("post 0", 4, 5),
        ("loss", 5, 7),
        ("mean", 5, 7),
        ("backward", 7, 12),
        ("block 1", 7, 11),
        ("post_backward 0", 7, 11),
        ("block 0", 11, 12),
    ]


def test_counters_are_live_bytes_and_the_highest_end() -> None:
    found = chrome_trace(placed_step(), ADDRESSES)
    live = [100, 500, 550, 500, 700, 730, 700, 780, 380, 280, 200, 264]
    top = [100, 500, 550, 500, 700, 730, 700, 780, 780, 780, 700, 700]
    assert counter(found, "live bytes") == dict(enumerate(live))
    changes = {time: top[time] for time in range(12) if time not in (8, 9, 11)}
    assert counter(found, "top address") == changes
    assert counter(chrome_trace(placed_step()), "top address") == {}


def test_the_largest_requests_have_slices_of_their_own() -> None:
    found = chrome_trace(placed_step(), ADDRESSES, num_largest=2)
    begins = [event for event in found["traceEvents"] if event["ph"] == "b"]
    assert [event["name"] for event in begins] == ["mm 400 B", "post 200 B"]
    assert begins[0]["args"] == {
        "bytes": 400,
        "phase": "forward",
        "block": 0,
        "tile": 0,
        "address": 100,
    }
    with pytest.raises(InvalidInput, match="num_largest is -1"):
        chrome_trace(placed_step(), num_largest=-1)


def test_a_stage_that_takes_no_time_is_left_out() -> None:
    requests = placed_step()
    made, blocks = requests.malloc_times.copy(), requests.blocks.copy()
    made[2], blocks[2] = 1, 1  # a request of block 1 at the same time as the one of block 0
    found = chrome_trace(replace(requests, malloc_times=made, blocks=blocks))
    check_structure(found)
    assert ("block 0", 1, 1) not in slices(found)
    assert ("block 1", 1, 5) in slices(found)


@settings(max_examples=30, deadline=None)
@given(requests=steps())
def test_any_step_gives_a_sound_trace(requests: Requests) -> None:
    found = chrome_trace(requests)
    check_structure(found)
    assert max(counter(found, "live bytes").values()) == requests.peak_bytes()


def test_the_file_is_json_with_a_title(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    found = chrome_trace(placed_step(), ADDRESSES, title="two blocks")
    write_chrome_trace(found, path)
    read = json.loads(path.read_text())
    assert read == found
    assert read["traceEvents"][0]["args"] == {"name": "two blocks"}
