"""Nanoseconds to allocate or free a tensor: planned addresses, the arena by size, and glibc.

usage: python benchmarks/allocation_speed.py [--layers 12 --tokens 2048 --repeats 21] [--csv]

The requests are those of a recorded step by token tiles, in their order, asked by a C++ loop
through the same two functions that torch's allocator hook calls. No memory is touched. The modes
take turns; a figure is the time of a whole step over its allocations and frees.
"""

import argparse
import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import memo_train
from benchmarks.job import Job
from benchmarks.llama import build_model, piece_of_text
from benchmarks.native import compiled
from benchmarks.results import ResultRow, append_csv, print_table
from memo_train import _core
from memo_train.device import EventKind, Events, get_cpu_device
from memo_train.layout._solved import RecordedStep, SolvedStep, recorded_step, solve_step
from memo_train.runtime import NOWHERE
from memo_train.trace import Place

NS = 1e9


@dataclass(frozen=True, kw_only=True)
class Requests:
    """A step's planned requests: events (k asks, ~k gives back) and their bytes; int64."""

    events: Any
    size_bytes: Any
    solved: SolvedStep


def record(job: Job, tokens: int) -> Requests:
    """A step of the job's model by token tiles, as device memory sees it."""
    model = memo_train.wrap(build_model(job), alpha=0.5)
    memo_train.use_layouts(model, False)
    device = get_cpu_device()
    for index in range(2):
        ids = piece_of_text(tokens, index)
        device.start_recording()
        device.mark(0)
        model(input_ids=ids, labels=ids).loss.backward()
        events = device.stop_recording()
    memo_train.unwrap(model)
    places = (Place("forward", "between", NOWHERE, NOWHERE, ""),)
    return _requests(events, recorded_step(events, places, device.smallest_planned_bytes))


def _requests(events: Events, recorded: RecordedStep) -> Requests:
    device = get_cpu_device()
    solved = solve_step(recorded, device.alignment_bytes)
    is_large = events["bytes"] >= device.smallest_planned_bytes
    is_ours = is_large & (events["source"] == events["source"][0])
    living: dict[int, int] = {}
    order, asked = [], 0
    for event in events[is_ours]:
        offset = int(event["offset"])
        if event["kind"] == EventKind.ALLOC:
            living[offset] = asked
            order.append(asked)
            asked += 1
        elif offset in living:
            order.append(~living.pop(offset))
    order += [~k for k in living.values()]
    return Requests(events=np.array(order, np.int64), size_bytes=recorded.size_bytes, solved=solved)


def measure(requests: Requests, repeats: int) -> dict[str, list[float]]:
    """Nanoseconds per allocation or free of each mode, the modes in turn."""
    modes = _modes(_library())
    found: dict[str, list[float]] = {name: [] for name in modes}
    for repeat in range(repeats + 1):
        for name, mode in modes.items():
            seconds = mode(requests)
            if repeat:
                found[name].append(seconds / len(requests.events) * NS)
    return found


def _modes(library: ctypes.CDLL) -> dict[str, Callable[[Requests], float]]:
    planned, by_size = _core.Arena(1 << 40), _core.Arena(1 << 40)

    def run(entry: tuple[int, int, int], requests: Requests) -> float:
        events, sizes = requests.events, requests.size_bytes
        seconds: float = library.run_step(
            *entry, events.ctypes.data, len(events), sizes.ctypes.data, len(sizes)
        )
        assert seconds > 0, "an allocation was refused"
        return seconds

    def replay(requests: Requests) -> float:
        layout = get_cpu_device().make_layout(requests.solved)
        assert isinstance(layout, _core.StepLayout)
        assert planned.begin_step(layout)
        planned.mark(0)
        seconds = run(planned.hook_entry(), requests)
        counts = planned.end_step()
        assert counts is not None
        assert counts.departed == 0, f"{counts.departed} requests were not as planned"
        return seconds

    glibc = (0, library.malloc_entry(), library.free_entry())
    return {
        "planned": replay,
        "arena by size": lambda requests: run(by_size.hook_entry(), requests),
        "glibc": lambda requests: run(glibc, requests),
    }


def _library() -> ctypes.CDLL:
    library = compiled(Path(__file__).with_suffix(".cc"))
    library.run_step.restype = ctypes.c_double
    pointer, number = ctypes.c_size_t, ctypes.c_int64
    library.run_step.argtypes = [*[pointer] * 4, number, pointer, number]
    library.malloc_entry.restype = library.free_entry.restype = pointer
    return library


def main() -> None:
    """Measure, print, and append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--csv", action="store_true")
    options = parser.parse_args()
    job = Job(mode="memo", layers=options.layers, hidden=options.hidden)
    requests = record(job, options.tokens)
    settings = f"layers={options.layers};tokens={options.tokens}"
    settings += f";requests={len(requests.size_bytes)}"
    rows = [
        ResultRow.of(settings, name, "ns per allocation or free", values)
        for name, values in measure(requests, options.repeats).items()
    ]
    title = f"allocation and free, {len(requests.size_bytes):,} requests of a recorded step"
    cells = [[r.mode, f"{r.median:.0f}", f"{r.min:.0f} to {r.max:.0f}"] for r in rows]
    print_table(title, ["mode", "median ns", "min to max"], cells)
    if options.csv:
        append_csv("allocation_speed", rows)


if __name__ == "__main__":
    main()
