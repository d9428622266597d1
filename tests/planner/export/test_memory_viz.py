"""Snapshots: PyTorch's own tools take them, and the events say what the requests say."""

import base64
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from torch.cuda import _memory_viz

from memo_planner.errors import InvalidInput
from memo_planner.export import snapshot, write_snapshot
from memo_planner.trace import BEFORE, Requests
from tests.planner.allocators.steps import steps
from tests.planner.export.placed import ADDRESSES, placed_step

# Source: the cases of `unpickle` in PyTorch's torch/utils/viz/MemoryViz.js.
VIEWER_READS = {
    *("PROTO", "FRAME", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET", "STOP"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE"),
}


def lifetimes(found: dict[str, Any]) -> set[tuple[int, int, int, int | None]]:
    """(address, bytes, made, freed) of what the events show; made 0: not in them."""
    live: dict[int, tuple[int, int]] = {}
    shown = set()
    for event in found["device_traces"][0]:
        address, size, time = event["addr"], event["size"], event["time_us"]
        if event["action"] == "alloc":
            assert address not in live
            live[address] = (size, time)
        elif event["action"] == "free_completed":
            made = live.pop(address, (size, 0))
            assert made[0] == size
            shown.add((address, size, made[1], time))
    return shown | {(address, size, made, None) for address, (size, made) in live.items()}


def test_pytorch_s_viewer_and_tools_take_it() -> None:
    found = snapshot(placed_step(), ADDRESSES, title="two blocks")
    for plot in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        html = plot(found)
        embedded = re.search(r'"snapshot.pickle", "base64": "([^"]+)"', html)
        assert embedded is not None
        assert "<script" in html
        assert pickle.loads(base64.b64decode(embedded[1])) == found
    assert "780.0B" in _memory_viz.segsum(found)
    lines = _memory_viz.trace(found).splitlines()
    assert sum("[" in line for line in lines) == 6  # allocations
    assert sum(line.startswith("del") for line in lines) == 5


def test_events_give_the_requests_back() -> None:
    requests = placed_step()
    shown = lifetimes(snapshot(requests, ADDRESSES))
    assert shown == {
        (0, 100, 0, 9),
        (100, 400, 1, 8),
        (500, 50, 2, 3),
        (500, 200, 4, None),
        (700, 30, 5, 6),
        (700, 80, 7, 10),
        (0, 64, 11, None),
    }


def test_frames_name_operation_tile_block_and_phase() -> None:
    events = snapshot(placed_step(), ADDRESSES)["device_traces"][0]
    frames = {event["addr"]: event["frames"] for event in events if event["action"] == "alloc"}
    shown = [f"{frame['filename']}:{frame['line']}:{frame['name']}" for frame in frames[700]]
    assert shown == [
        "request:15:add",
        "tile:0:post_backward",
        "block:1:backward",
        "step:0:backward",
    ]


def test_the_segment_is_what_the_step_leaves() -> None:
    (segment,) = snapshot(placed_step(), ADDRESSES, title="two blocks")["segments"]
    blocks = [(block["address"], block["size"], block["state"]) for block in segment["blocks"]]
    assert blocks == [
        (0, 64, "active_allocated"),
        (64, 436, "inactive"),
        (500, 200, "active_allocated"),
        (700, 80, "inactive"),
    ]
    assert segment["total_size"] == 780
    assert segment["active_size"] == 264
    assert segment["frames"][0]["name"] == "two blocks"


@settings(max_examples=30, deadline=None)
@given(requests=steps())
def test_going_back_from_the_segment_never_meets_a_contradiction(requests: Requests) -> None:
    """As the viewer does: undo every event from the end; before the step only BEFORE lives."""
    found = snapshot(requests)
    (segment,) = found["segments"]
    assert sum(block["size"] for block in segment["blocks"]) == segment["total_size"]
    live = {b["address"]: b["size"] for b in segment["blocks"] if b["state"] != "inactive"}
    for event in reversed(found["device_traces"][0]):
        if event["action"] == "alloc":
            assert live.pop(event["addr"]) == event["size"]
        elif event["action"] == "free_completed":
            assert event["addr"] not in live
            live[event["addr"]] = event["size"]
            assert event["addr"] + event["size"] <= segment["total_size"]
    assert len(live) == np.count_nonzero(requests.phases == BEFORE)


def test_the_file_is_a_pickle_of_plain_types(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pickle"
    found = snapshot(placed_step(), ADDRESSES)
    write_snapshot(found, path)
    data = path.read_bytes()
    assert pickle.loads(data) == found
    found_ops = {op.name for op, *_ in pickletools.genops(data)}
    assert found_ops <= VIEWER_READS, "the viewer's own reader of pickle knows no others"


def test_addresses_must_be_one_a_request() -> None:
    with pytest.raises(InvalidInput, match=r"\(3,\) addresses for 7 requests"):
        snapshot(placed_step(), ADDRESSES[:3])
    with pytest.raises(InvalidInput, match="request 11 has the address -1"):
        snapshot(placed_step(), np.array([0, -1, 2, 3, 4, 5, 6]))
