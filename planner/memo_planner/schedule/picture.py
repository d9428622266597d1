"""A simulated step as an SVG picture: what each stream does, and memory over time."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from memo_planner.schedule.memory import MemoryCurve
from memo_planner.schedule.operation import Phase, Stream
from memo_planner.schedule.simulation import Simulation
from memo_planner.schedule.timeline import STREAM_NAMES, used_streams
from memo_planner.schedule.usage import stretches
from memo_planner.sizes import format_bytes

_LEFT, _WIDTH, _RIGHT = 130, 900, 30
_LANE, _GAP, _CHART = 26, 10, 130
_TOP = 78
_COLOURS = {
    Phase.FORWARD: "#4c78a8",
    Phase.LOSS: "#b279a2",
    Phase.BACKWARD: "#f58518",
    Phase.OPTIMIZER: "#9d755d",
}
_STALL, _DEVICE, _HOST, _GRID, _TEXT = "#e45756", "#54a24b", "#72b7b2", "#d8d8d8", "#222222"
_LEAST_GAP = 0.4
_TICKS = 6


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
    x, width = _LEFT + start_s * scale, max((end_s - start_s) * scale, 0.2)
    return f'<rect x="{x:.2f}" y="{y:.1f}" width="{width:.2f}" height="{_LANE}" fill="{colour}"/>'
