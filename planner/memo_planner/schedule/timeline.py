"""A simulated step as text: a table of figures, and a timeline of streams and memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from memo_planner.schedule.memory import MemoryCurve
from memo_planner.schedule.operation import Phase, Stream
from memo_planner.schedule.simulation import Simulation
from memo_planner.schedule.usage import busy_shares, stretches
from memo_planner.sizes import format_bytes

_LEVELS = " .:-=+*#"
_LETTERS = {Phase.FORWARD: "F", Phase.LOSS: "L", Phase.BACKWARD: "B", Phase.OPTIMIZER: "O"}
STREAM_NAMES = {
    Stream.COMPUTE: "compute",
    Stream.D2H: "device to host",
    Stream.H2D: "host to device",
    Stream.COLLECTIVE: "collectives",
}


def figure_rows(step: Simulation) -> list[tuple[str, str]]:
    """(name, value) of what the step came to."""
    rows = [("step", _seconds(step.step_s))]
    if step.mfu is not None:
        rows.append(("MFU", f"{step.mfu:.2%}"))
    rows.append(("computation", _part(step, step.compute_s)))
    rows += [
        (f"waits for {cause}", _part(step, seconds))
        for cause, seconds in step.stall_s_by_cause.items()
        if seconds
    ]
    rows += [
        (f"{STREAM_NAMES[stream]} busy", _part(step, step.busy_s[stream]))
        for stream in used_streams(step)[1:]
    ]
    rows.append(("device peak", _peak(step, step.device)))
    rows.append(("host peak", _peak(step, step.host)))
    return rows


def timeline_lines(step: Simulation, width: int = 72) -> list[str]:
    """One line for each stream and memory; the step runs from left to right."""
    names = [STREAM_NAMES[stream] for stream in used_streams(step)]
    margin = max(map(len, (*names, "device bytes")))
    lines = [f"{'':{margin}}  0 s{_seconds(step.step_s):>{width - 3}}"]
    lines.append(f"{'compute':{margin}} |{_compute_text(step, width)}|")
    for stream, name in zip(used_streams(step)[1:], names[1:], strict=True):
        lines.append(f"{name:{margin}} |{_levels(busy_shares(step, stream, width))}|")
    for name, curve in (("device bytes", step.device), ("host bytes", step.host)):
        shares = curve.sampled(width, step.step_s) / max(curve.peak_bytes, 1)
        lines.append(f"{name:{margin}} |{_levels(shares)}|")
    lines.append(
        f"F forward, L loss, B backward, O optimizer, . mostly waiting; others from nothing"
        f" '{_LEVELS}' to all the time, or the peak"
    )
    return lines


def summary(step: Simulation) -> dict[str, Any]:
    """The step as JSON types; the memory curves are in `curve`."""
    schedule = step.schedule
    return {
        "strategy": schedule.strategy,
        "model": schedule.model,
        "tokens": schedule.tokens,
        "num_operations": len(schedule.operations),
        "inputs_hash": schedule.inputs_hash,
        "step_s": step.step_s,
        "mfu": step.mfu,
        "compute_s": step.compute_s,
        "stall_s": step.stall_s,
        "stall_s_by_cause": step.stall_s_by_cause,
        "busy_s": {stream.value: seconds for stream, seconds in step.busy_s.items()},
        "device": _curve(step, step.device),
        "host": _curve(step, step.host),
    }


def used_streams(step: Simulation) -> list[Stream]:
    """Compute, and the other streams that have anything to do."""
    others = (Stream.D2H, Stream.H2D, Stream.COLLECTIVE)
    return [Stream.COMPUTE, *(stream for stream in others if step.busy_s[stream])]


def where(step: Simulation, operation: int) -> str:
    """An operation's place in the step, e.g. `post backward of block 3, tile 2`."""
    if operation < 0:
        return "the whole step"
    one = step.schedule.operations[operation]
    text = one.name
    text += "" if one.block is None else f" of block {one.block}"
    return text if one.tile is None else f"{text}, tile {one.tile}"


def _compute_text(step: Simulation, width: int) -> str:
    busy = busy_shares(step, Stream.COMPUTE, width)
    letters = [" "] * width
    part_s = step.step_s / width or 1.0
    for stretch in stretches(step, Stream.COMPUTE, 0.0):
        first = min(int(stretch.start_s / part_s), width - 1)
        last = min(int(np.ceil(stretch.end_s / part_s)), width)
        letters[first:last] = [_LETTERS[stretch.phase]] * (last - first)
    return "".join("." if share < 0.5 else name for share, name in zip(busy, letters, strict=True))


def _levels(shares: Any) -> str:
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[int(np.ceil(min(share, 1.0) * top))] for share in shares.tolist())


def _curve(step: Simulation, curve: MemoryCurve) -> dict[str, Any]:
    return {
        "peak_bytes": curve.peak_bytes,
        "peak_s": curve.peak_s,
        "peak_at": where(step, curve.peak_operation),
        "times_s": curve.times_s.tolist(),
        "bytes": curve.num_bytes.tolist(),
    }


def _peak(step: Simulation, curve: MemoryCurve) -> str:
    return f"{format_bytes(curve.peak_bytes)} at {where(step, curve.peak_operation)}"


def _part(step: Simulation, seconds: float) -> str:
    return f"{_seconds(seconds)} ({seconds / (step.step_s or 1.0):.1%} of the step)"


def _seconds(seconds: float) -> str:
    return f"{seconds:.4g} s"
