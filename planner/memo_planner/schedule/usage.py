"""How busy each stream is, and which stretches of the step it works, for tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memo_planner.schedule.memory import Floats
from memo_planner.schedule.operation import Kind, Phase, Stream
from memo_planner.schedule.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A stream works on one phase from `start_s` to `end_s`, without a visible pause."""

    phase: Phase
    start_s: float
    end_s: float


def stretches(step: Simulation, stream: Stream, least_gap_s: float) -> Iterator[Stretch]:
    """The stream's work in order; operations less than `least_gap_s` apart are one stretch."""
    current: Stretch | None = None
    for start_s, end_s, phase in _worked(step, stream):
        if current is not None and phase is current.phase and start_s - current.end_s < least_gap_s:
            current = Stretch(phase=phase, start_s=current.start_s, end_s=end_s)
            continue
        if current is not None:
            yield current
        current = Stretch(phase=phase, start_s=start_s, end_s=end_s)
    if current is not None:
        yield current


def busy_shares(step: Simulation, stream: Stream, num_parts: int) -> Floats:
    """The share in [0, 1] of each of `num_parts` equal parts of the step that the stream works."""
    times, total = [0.0], [0.0]
    for start_s, end_s, _ in _worked(step, stream):
        times += [start_s, end_s]
        total += [total[-1], total[-1] + end_s - start_s]
    edges = np.linspace(0.0, step.step_s, num_parts + 1)
    done = np.interp(edges, times, total)
    part_s = step.step_s / num_parts
    shares: Floats = np.clip(np.diff(done) / (part_s or 1.0), 0.0, 1.0)
    return shares


def _worked(step: Simulation, stream: Stream) -> Iterator[tuple[float, float, Phase]]:
    """(start, end, phase) of all that takes time on a stream, in order."""
    starts, ends = step.starts_s.tolist(), step.ends_s.tolist()
    for index, one in enumerate(step.schedule.operations):
        if one.stream is stream and one.kind is not Kind.WAIT and ends[index] > starts[index]:
            yield starts[index], ends[index], one.phase
