"""A picture of device memory over a step: x is time, y the address, a rectangle a request (SVG)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from html import escape

import numpy as np

from memo_planner.errors import format_bytes
from memo_planner.export._addresses import Stretch, checked_addresses, end_bytes, stretches_of
from memo_planner.trace import PHASES, Column, Requests

_LEFT, _WIDTH, _RIGHT = 96, 1080, 24
_TOP, _HEIGHT, _STRIP = 84, 560, 20
_LEAST_PIXELS = 0.35
"""Rectangles lower than this are not drawn; how many is said in the picture."""

# Less would be printed as 0.0 %.
_LEAST_LOST = 0.0005
_EDGE_PIXELS = 3.0
_GRID, _TEXT, _FAINT, _PEAK = "#e4e4e4", "#222222", "#8a8a8a", "#c0392b"
_MOST_TICKS = 9


class Kind(Enum):
    """What a request is for, by when it was made and freed; its value is its legend."""

    BEFORE = "lived before the step"
    WITHIN = "within the step"
    SAVED = "from forward to backward"
    FORWARD = "within forward"
    LOSS = "loss"
    BACKWARD = "within backward"
    GRADIENT = "from backward to optimizer"
    OPTIMIZER = "optimizer"
    OUTLIVES = "outlives the step"


_COLOURS = {
    Kind.BEFORE: "#7f7f7f",
    Kind.WITHIN: "#9ecae9",
    Kind.SAVED: "#4c78a8",
    Kind.FORWARD: "#9ecae9",
    Kind.LOSS: "#b279a2",
    Kind.BACKWARD: "#f58518",
    Kind.GRADIENT: "#eeca3b",
    Kind.OPTIMIZER: "#9d755d",
    Kind.OUTLIVES: "#54a24b",
}
_PHASE_COLOURS = {
    "forward": _COLOURS[Kind.FORWARD],
    "loss": _COLOURS[Kind.LOSS],
    "backward": _COLOURS[Kind.BACKWARD],
    "optimizer": _COLOURS[Kind.OPTIMIZER],
}


def kinds_of(requests: Requests) -> list[Kind]:
    """The kind of every request; without a backward the parts of the step are not known."""
    backward_at, optimizer_at = (_begin(requests, name) for name in ("backward", "optimizer"))
    forward = Kind.FORWARD if backward_at < requests.end_time else Kind.WITHIN
    of_phase = (Kind.BEFORE, forward, Kind.LOSS, Kind.BACKWARD, Kind.OPTIMIZER)
    assert len(of_phase) == len(PHASES), "a kind for every phase"
    kinds = [of_phase[phase] for phase in requests.phases.tolist()]
    rows = zip(requests.free_times.tolist(), requests.outlive.tolist(), strict=True)
    for row, (freed, outlives) in enumerate(rows):
        if outlives and kinds[row] is not Kind.BEFORE:
            kinds[row] = Kind.OUTLIVES
        elif kinds[row] is Kind.FORWARD and freed > backward_at:
            kinds[row] = Kind.SAVED
        elif kinds[row] is Kind.BACKWARD and freed > optimizer_at:
            kinds[row] = Kind.GRADIENT
    return kinds


def _begin(requests: Requests, phase: str) -> int:
    """When the first request of a phase is made; the step's end if there is none."""
    made = requests.malloc_times[requests.phases == PHASES.index(phase)]
    return int(made.min(initial=requests.end_time))


def memory_map(requests: Requests, addresses: Column | None = None, *, title: str = "step") -> str:
    """The picture, as text of an SVG document.

    addresses: int64 [n], where requests begin; None: where best fit would put them.
    Raises: InvalidInput.
    """
    places = checked_addresses(requests, addresses)
    top = max(1, end_bytes(requests, places))
    kinds = kinds_of(requests)
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + 2 * _STRIP + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="{_TEXT}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_header(requests, top, title),
        *_legend(kinds),
        *_grid(top),
        *_rectangles(requests, places, kinds, top),
        *_live_line(requests, top),
        *_strips(requests),
        *_footer(requests, top, height),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _header(requests: Requests, top: int, title: str) -> Iterator[str]:
    yield f'<text x="{_LEFT}" y="24" font-size="16">{escape(title)}</text>'
    live = requests.peak_bytes()
    lost = 1 - live / top
    unused = f", {lost:.1%} of it never in use at once" if lost >= _LEAST_LOST else ""
    facts = (
        f"{len(requests):,} requests, highest address {format_bytes(top)}, "
        f"most alive at once {format_bytes(live)}{unused}"
    )
    yield f'<text x="{_LEFT}" y="43" fill="{_FAINT}">{escape(facts)}</text>'


def _legend(kinds: list[Kind]) -> Iterator[str]:
    x = float(_LEFT)
    for kind in [kind for kind in Kind if kind in set(kinds)]:
        yield f'<rect x="{x:.0f}" y="56" width="12" height="12" fill="{_COLOURS[kind]}"/>'
        yield f'<text x="{x + 17:.0f}" y="66">{kind.value}</text>'
        # SVG cannot measure its text: a letter of this size is about 6.3 wide.
        x += 34 + 6.3 * len(kind.value)
    x = _LEFT + _WIDTH - 245.0  # lines: above, at the right
    yield f'<path d="M{x:.0f} 39h20" stroke="{_TEXT}" opacity="0.8"/>'
    yield f'<text x="{x + 25:.0f}" y="43">bytes alive</text>'
    yield f'<path d="M{x + 105:.0f} 39h20" stroke="{_PEAK}" stroke-dasharray="5 4"/>'
    yield f'<text x="{x + 130:.0f}" y="43">most alive at once</text>'


def _grid(top: int) -> Iterator[str]:
    yield f'<rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="#fafafa"/>'
    step = 1 << max(0, math.ceil(math.log2(top / _MOST_TICKS)))
    for level in range(0, top + 1, step):
        y = _TOP + _HEIGHT * (1 - level / top)
        yield f'<path d="M{_LEFT} {y:.1f}h{_WIDTH}" stroke="{_GRID}"/>'
        shown = format_bytes(level) if level else "0"
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'


def _rectangles(requests: Requests, places: Column, kinds: list[Kind], top: int) -> Iterator[str]:
    """One rectangle a request, those of one kind in a group, large ones with an edge."""
    across, up = _WIDTH / requests.end_time, _HEIGHT / top
    x = _LEFT + requests.malloc_times * across
    width = np.maximum((requests.free_times - requests.malloc_times) * across, 0.3)
    height = requests.size_bytes * up
    y = _TOP + _HEIGHT - places * up - height
    for kind in Kind:
        rows = [row for row, each in enumerate(kinds) if each is kind]
        yield f'<g fill="{_COLOURS[kind]}" stroke="#ffffff" stroke-width="0">'
        for row in rows:
            if height[row] < _LEAST_PIXELS:
                continue
            is_large = min(width[row], height[row]) >= _EDGE_PIXELS
            edge = ' stroke-width="0.5"' if is_large else ""
            yield (
                f'<rect x="{x[row]:.2f}" y="{y[row]:.2f}" width="{width[row]:.2f}" '
                f'height="{height[row]:.2f}"{edge}/>'
            )
        yield "</g>"


def _live_line(requests: Requests, top: int) -> Iterator[str]:
    """Bytes alive over time, in the scale of the addresses."""
    levels = requests.live_bytes()
    columns = np.arange(_WIDTH) * requests.end_time // _WIDTH
    most = np.maximum.reduceat(levels, np.unique(columns))
    shown = dict(zip(np.unique(columns).tolist(), most.tolist(), strict=True))
    path: list[str] = []
    for column, time in enumerate(columns.tolist()):
        y = _TOP + _HEIGHT * (1 - shown[time] / top)
        path.append(f"{'L' if path else 'M'}{_LEFT + column} {y:.1f}")
    yield f'<path d="{"".join(path)}" fill="none" stroke="{_TEXT}" opacity="0.8"/>'
    y = _TOP + _HEIGHT * (1 - requests.peak_bytes() / top)
    yield f'<path d="M{_LEFT} {y:.1f}h{_WIDTH}" stroke="{_PEAK}" stroke-dasharray="5 4"/>'


def _strips(requests: Requests) -> Iterator[str]:
    """Below the map: phases, then blocks in two alternating shades; nothing of a lone phase."""
    stretches = [stretch for stretch in stretches_of(requests) if stretch.level <= 1]
    if len(stretches) < 2:
        return
    for stretch in stretches:
        y = _TOP + _HEIGHT + 4 + stretch.level * (_STRIP + 2)
        colour = _PHASE_COLOURS.get(stretch.name, "#d0d0d0" if stretch.number % 2 else "#b4b4b4")
        x, width = _span(requests, stretch)
        yield f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_STRIP}" fill="{colour}"/>'
        text = stretch.name if stretch.level == 0 else str(stretch.number)
        if width > 7 * len(text) + 1:
            middle = x + width / 2
            style = f'font-size="{12 - 2 * stretch.level}" text-anchor="middle"'
            yield f'<text x="{middle:.1f}" y="{y + 14}" {style}>{text}</text>'
    for level, name in enumerate(("phase", "block")):
        y = _TOP + _HEIGHT + 18 + level * (_STRIP + 2)
        yield f'<text x="{_LEFT - 8}" y="{y}" text-anchor="end">{name}</text>'


def _span(requests: Requests, stretch: Stretch) -> tuple[float, float]:
    across = _WIDTH / requests.end_time
    return _LEFT + stretch.start * across, (stretch.stop - stretch.start) * across


def _footer(requests: Requests, top: int, height: int) -> Iterator[str]:
    low = int(np.count_nonzero(requests.size_bytes * (_HEIGHT / top) < _LEAST_PIXELS))
    text = f"time: {requests.end_time:,} allocations and frees, left to right"
    if low:
        text += f"; {low:,} requests are too small to be seen"
    yield f'<text x="{_LEFT}" y="{height - 12}" fill="{_FAINT}">{text}</text>'
