"""A step as a snapshot that PyTorch's memory visualiser opens (pytorch.org/memory_viz).

The viewer reads pickle, so that is what is written; nothing here reads it. One segment holds all
addresses. Time is the step's: one microsecond an event. What lived before the step is known to the
viewer by its free, or by the segment; what outlives it, by the segment.

Source: "Understanding CUDA memory usage" in PyTorch's documentation and the docstring of
    `torch.cuda.memory._snapshot`; the snapshot's format has no version.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from memo_planner.allocators import event_order
from memo_planner.export._addresses import checked_addresses, end_bytes, operation
from memo_planner.trace import BEFORE, NOWHERE, PHASES, Column, Requests


def snapshot(
    requests: Requests, addresses: Column | None = None, *, title: str = "step"
) -> dict[str, Any]:
    """Segments and events of the step, as `torch.cuda.memory._snapshot` gives them for a GPU.

    addresses: int64 [n], where requests begin; None: where best fit would put them.
    Raises: InvalidInput.
    """
    places = checked_addresses(requests, addresses)
    frames = [_frames(requests, row) for row in range(len(requests))]
    return {
        "segments": [_segment(requests, places, frames, title)],
        "device_traces": [_events(requests, places, frames)],
        "allocator_settings": {"expandable_segments": False},
        "external_annotations": [],
    }


def write_snapshot(found: dict[str, Any], path: Path) -> None:
    """Write a snapshot as the viewer's pickle. Raises: OSError."""
    path.write_bytes(pickle.dumps(found, protocol=4))


def _frames(requests: Requests, row: int) -> list[dict[str, Any]]:
    """Who asked, innermost first, as the viewer's `file:line:function`."""
    stage, op = operation(requests, row)
    tile, block = int(requests.tiles[row]), int(requests.blocks[row])
    phase = PHASES[int(requests.phases[row])]
    found = [("request", int(requests.ids[row]), op or "operation not known")]
    if tile != NOWHERE or stage:
        found.append(("tile" if tile != NOWHERE else "stage", max(tile, 0), stage or "tile"))
    if block != NOWHERE:
        found.append(("block", block, phase))
    found.append(("step", 0, phase))
    return [{"filename": name, "line": line, "name": text} for name, line, text in found]


def _events(
    requests: Requests, places: Column, frames: list[list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    num, end_time = len(requests), requests.end_time
    made, freed = requests.malloc_times.tolist(), requests.free_times.tolist()
    starts, sizes = places.tolist(), requests.size_bytes.tolist()
    is_before = (requests.phases == BEFORE).tolist()
    found = []
    for event in event_order(requests).tolist():
        row = event % num
        is_free = event < num
        if (is_free and freed[row] == end_time) or (not is_free and is_before[row]):
            continue
        shown = {
            "addr": starts[row],
            "size": sizes[row],
            "stream": 0,
            "time_us": freed[row] if is_free else made[row],
            "frames": frames[row],
        }
        # On one stream both come at one time; PyTorch logs both.
        actions = ("free_requested", "free_completed") if is_free else ("alloc",)
        found += [{"action": action, **shown} for action in actions]
    return found


def _segment(
    requests: Requests, places: Column, frames: list[list[dict[str, Any]]], title: str
) -> dict[str, Any]:
    """The one segment as it is after the step: what outlives it, and the free ranges between."""
    total = end_bytes(requests, places)
    alive = [row for row, outlives in enumerate(requests.outlive.tolist()) if outlives]
    alive.sort(key=lambda row: int(places[row]))
    blocks: list[dict[str, Any]] = []
    end = 0
    for row in alive:
        start, size = int(places[row]), int(requests.size_bytes[row])
        if start > end:
            blocks.append(_block(end, start - end, "inactive", []))
        blocks.append(_block(start, size, "active_allocated", frames[row]))
        end = start + size
    if total > end:
        blocks.append(_block(end, total - end, "inactive", []))
    live = sum(int(requests.size_bytes[row]) for row in alive)
    return {
        "device": 0,
        "address": 0,
        "total_size": total,
        "allocated_size": live,
        "active_size": live,
        "requested_size": live,
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [{"filename": "memo-train", "line": 0, "name": title}],
        "blocks": blocks,
    }


def _block(start: int, size: int, state: str, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "address": start,
        "size": size,
        "requested_size": size if state == "active_allocated" else 0,
        "state": state,
        "frames": frames,
    }
