"""Shapes of an SVG document, in the order in which they are drawn."""

from __future__ import annotations

from html import escape

TEXT, FAINT, GRID, STALL = "#222222", "#6b6b6b", "#d8d8d8", "#c0392b"
KEEP, SWAP, RECOMPUTE = "#54a24b", "#4c78a8", "#f58518"
ATTENTION, WHOLE = "#5f5f5f", "#9ecae9"
"""Colours: of what becomes of a tile, then of attention, and of a block's x and o."""

LETTER_PIXELS = 6.3
"""About the width of a letter of 12 pixels: SVG cannot measure its text."""


class Drawing:
    """A picture of `width` by `height` pixels on a white ground."""

    def __init__(self, width: int, height: int) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" '
            f'fill="{TEXT}">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def text(self) -> str:
        """The document."""
        return "\n".join([*self._parts, "</svg>"]) + "\n"

    def bar(self, x: float, y: float, size: tuple[float, float], colour: str) -> None:
        """A filled rectangle; `size` is width and height."""
        width, height = size
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{colour}"/>'
        )

    def say(self, x: float, y: float, text: str, *, anchor: str = "start", **style: object) -> None:
        """Text whose base line begins, ends or is centred at (x, y), by `anchor`."""
        given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        at = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{at}{given}>{escape(text)}</text>')

    def line(self, path: str, colour: str, *, dashed: bool = False, fill: str = "none") -> None:
        """An SVG path."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<path d="{path}" stroke="{colour}" fill="{fill}"{dash}/>')

    def legend(self, x: float, y: float, entries: dict[str, str]) -> None:
        """A coloured square and its name for each of `entries`, from left to right."""
        for name, colour in entries.items():
            self.bar(x, y - 10, (12, 12), colour)
            self.say(x + 17, y, name)
            x += 36 + LETTER_PIXELS * len(name)
