"""A simulated step for people: a table of figures, a timeline as text, and an SVG picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from memo_planner.errors import format_bytes
from memo_planner.schedule._schedule import Kind, Phase, Stream
from memo_planner.schedule._simulation import Floats, MemoryCurve, Simulation

_LEVELS = " .:-=+*#"
_LETTERS = {Phase.FORWARD: "F", Phase.LOSS: "L", Phase.BACKWARD: "B", Phase.OPTIMIZER: "O"}
STREAM_NAMES = {
    Stream.COMPUTE: "compute",
    Stream.D2H: "device to host",
    Stream.H2D: "host to device",
    Stream.COLLECTIVE: "collectives",
}
_TOP = 78
_COLOURS = {
    Phase.FORWARD: "#4c78a8",
    Phase.LOSS: "#b279a2",
    Phase.BACKWARD: "#f58518",
    Phase.OPTIMIZER: "#9d755d",
}
# Pixels. Closer stretches are one bar: a long step has hundreds of thousands.
_LEAST_GAP = 0.4
_TICKS = 6


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
    # A step of no seconds has parts of none; rounding may go past 1.
    shares: Floats = np.clip(np.diff(done) / (part_s or 1.0), 0.0, 1.0)
    return shares


def _worked(step: Simulation, stream: Stream) -> Iterator[tuple[float, float, Phase]]:
    """(start, end, phase) of all that takes time on a stream, in order."""
    starts, ends = step.starts_s.tolist(), step.ends_s.tolist()
    for index, one in enumerate(step.schedule.operations):
        if one.stream is stream and one.kind is not Kind.WAIT and ends[index] > starts[index]:
            yield starts[index], ends[index], one.phase


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


_LEFT, _WIDTH, _RIGHT = 130, 900, 30
_LANE, _GAP, _CHART = 26, 10, 130
_STALL, _DEVICE, _HOST, _GRID, _TEXT = "#e45756", "#54a24b", "#72b7b2", "#d8d8d8", "#222222"


def svg_text(step: Simulation) -> str:
    """The whole picture, as text of an SVG document."""
    streams = used_streams(step)
    charts_top = _TOP + (len(streams) + 1) * (_LANE + _GAP)
    height = charts_top + 2 * (_CHART + 40)
    width = _LEFT + _WIDTH + _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="{_TEXT}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_header(step),
        *_ticks(step, height),
    ]
    for row, stream in enumerate(streams):
        parts += _lane(step, stream, _TOP + row * (_LANE + _GAP))
    parts += _stalls(step, _TOP + len(streams) * (_LANE + _GAP))
    parts += _chart(step, "device bytes", step.device, charts_top + 10, _DEVICE)
    parts += _chart(step, "host bytes", step.host, charts_top + _CHART + 50, _HOST)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _header(step: Simulation) -> Iterator[str]:
    schedule = step.schedule
    mfu = "" if step.mfu is None else f", MFU {step.mfu:.1%}"
    title = (
        f"{schedule.model}, {schedule.strategy}, {schedule.tokens:,} tokens: "
        f"{step.step_s:.4g} s{mfu}, of which compute waits {step.stall_s:.4g} s"
    )
    yield f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>'
    legend = [(phase.value, colour) for phase, colour in _COLOURS.items()]
    for place, (name, colour) in enumerate([*legend, ("compute waits", _STALL)]):
        x = _LEFT + place * 110
        yield f'<rect x="{x}" y="36" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 17}" y="46">{name}</text>'


def _ticks(step: Simulation, height: int) -> Iterator[str]:
    for tick in range(_TICKS + 1):
        x = _LEFT + _WIDTH * tick / _TICKS
        seconds = step.step_s * tick / _TICKS
        yield f'<path d="M{x:.1f} {_TOP - 6}V{height - 30}" stroke="{_GRID}"/>'
        yield f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle">{seconds:.3g} s</text>'


def _lane(step: Simulation, stream: Stream, y: float) -> Iterator[str]:
    yield _label(STREAM_NAMES[stream], y + _LANE / 2 + 4)
    least_gap_s = step.step_s * _LEAST_GAP / _WIDTH
    for stretch in stretches(step, stream, least_gap_s):
        yield _bar(step, stretch.start_s, stretch.end_s, y, _COLOURS[stretch.phase])


def _stalls(step: Simulation, y: float) -> Iterator[str]:
    yield _label("compute waits", y + _LANE / 2 + 4)
    for stall in step.stalls:
        at_end = float(step.starts_s[stall.operation]) < step.step_s - stall.seconds
        end_s = float(step.starts_s[stall.operation])
        if stall.cause == "the end of copies" and at_end:
            end_s = step.step_s
        yield _bar(step, end_s - stall.seconds, end_s, y, _STALL)


def _chart(step: Simulation, name: str, curve: MemoryCurve, y: float, colour: str) -> Iterator[str]:
    levels = curve.sampled(_WIDTH, step.step_s).tolist()
    most = max(curve.peak_bytes, 1)
    base = y + _CHART
    path = [f"M{_LEFT} {base:.1f}"]
    before = None
    for column, level in enumerate(levels):
        if level != before:
            path.append(f"V{base - _CHART * level / most:.1f}")
            before = level
        path.append(f"H{_LEFT + column + 1}")
    yield f'<path d="{"".join(_shortened(path))}V{base:.1f}Z" fill="{colour}"/>'
    yield f'<path d="M{_LEFT} {y:.1f}h{_WIDTH}" stroke="{_GRID}" stroke-dasharray="4 3"/>'
    yield _label(name, y + _CHART / 2)
    yield _label(f"peak {format_bytes(curve.peak_bytes)}", y + 4)
    yield _label("0", base)


def _shortened(path: list[str]) -> Iterator[str]:
    """The path without horizontal moves that the next one goes on with."""
    for one, following in zip(path, [*path[1:], ""], strict=True):
        if not (one.startswith("H") and following.startswith("H")):
            yield one


def _label(text: str, y: float) -> str:
    return f'<text x="{_LEFT - 8}" y="{y:.1f}" text-anchor="end">{escape(text)}</text>'


def _bar(step: Simulation, start_s: float, end_s: float, y: float, colour: str) -> str:
    scale = _WIDTH / (step.step_s or 1.0)
    # However short, it is seen.
    x, width = _LEFT + start_s * scale, max((end_s - start_s) * scale, 0.2)
    return f'<rect x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{_LANE}" fill="{colour}"/>'
