"""A step as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.

Counter tracks of live bytes and of the highest address in use, nested slices of phases, blocks and
tiles, and a slice for each of the largest requests. Time is the step's: one microsecond an event.

Source: "Trace Event Format", the Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memo_planner.checks import check_int
from memo_planner.errors import format_bytes
from memo_planner.export._addresses import (
    Stretch,
    checked_addresses,
    operation,
    stretches_of,
    top_addresses,
)
from memo_planner.trace import NOWHERE, PHASES, Column, Requests

_PROCESS, _THREAD = 1, 1
LARGEST_SHOWN = 200
"""Requests with a slice of their own, unless told otherwise."""


def chrome_trace(
    requests: Requests,
    addresses: Column | None = None,
    *,
    title: str = "step",
    num_largest: int = LARGEST_SHOWN,
) -> dict[str, Any]:
    """The trace as an object for JSON; events in order of time.

    addresses: int64 [n], where requests begin; without them there is no track of addresses.
    num_largest: how many requests get a slice of their own.
    Raises: InvalidInput.
    """
    check_int("num_largest", num_largest, 0)
    counters = {"live bytes": requests.live_bytes()}
    if addresses is not None:
        places = checked_addresses(requests, addresses)
        counters["top address"] = top_addresses(requests, places)
    found = [event for name, levels in counters.items() for event in _counter(name, levels)]
    found += _slices(stretches_of(requests))
    found += _largest(requests, addresses, num_largest)
    # Stable: of events at one time, each track's keep their order.
    found.sort(key=lambda event: event["ts"])
    names = [
        _event("process_name", "M", 0, args={"name": title}),
        _event("thread_name", "M", 0, args={"name": "stages"}),
    ]
    return {"traceEvents": names + found, "displayTimeUnit": "ms", "otherData": {"title": title}}


def write_chrome_trace(found: dict[str, Any], path: Path) -> None:
    """Write the trace as JSON. Raises: OSError."""
    text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _event(name: str, kind: str, time: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "ph": kind, "ts": time, "pid": _PROCESS, "tid": _THREAD, **more}


def _counter(name: str, levels: Column) -> Iterator[dict[str, Any]]:
    # Below any level, so that the first one counts as a change.
    changes = np.flatnonzero(np.diff(levels, prepend=-1))
    for time, level in zip(changes.tolist(), levels[changes].tolist(), strict=True):
        yield _event(name, "C", time, args={"bytes": level})


def _slices(stretches: list[Stretch]) -> list[dict[str, Any]]:
    """Begins and ends; at one time ends come first, inner ones before outer ones."""
    found = []
    for stretch in stretches:
        begin = _event(stretch.name, "B", stretch.start, cat="stage")
        end = _event(stretch.name, "E", stretch.stop, cat="stage")
        found.append((stretch.start, 1, stretch.level, begin))
        found.append((stretch.stop, 0, -stretch.level, end))
    return [event for *_, event in sorted(found, key=lambda each: each[:3])]


def _largest(
    requests: Requests, addresses: Column | None, num_largest: int
) -> Iterator[dict[str, Any]]:
    rows = np.argsort(-requests.size_bytes, kind="stable")[:num_largest]
    for row in np.sort(rows).tolist():
        stage, op = operation(requests, row)
        size = int(requests.size_bytes[row])
        shown = {
            "bytes": size,
            "phase": PHASES[int(requests.phases[row])],
            **_known("block", int(requests.blocks[row])),
            **_known("tile", int(requests.tiles[row])),
            **({} if addresses is None else {"address": int(addresses[row])}),
        }
        name = f"{op or stage or 'request'} {format_bytes(size)}"
        track = {"cat": "request", "id": hex(int(requests.ids[row]))}
        yield _event(name, "b", int(requests.malloc_times[row]), args=shown, **track)
        yield _event(name, "e", int(requests.free_times[row]), **track)


def _known(name: str, number: int) -> dict[str, int]:
    return {} if number == NOWHERE else {name: number}
