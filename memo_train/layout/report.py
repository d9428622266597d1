"""What a step's layout is worth and how steps went by it, shape by shape."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.sizes import format_bytes


@dataclass(frozen=True, kw_only=True)
class ShapeReport:
    """The layout of steps of one shape, and what became of those steps.

    Attributes:
        batch, tokens: of the step. precision: what it computes in.
        state: `recording`, `solving`, `planned`, or `by size` where it has no layout.
        num_requests: planned in a step. peak_bytes: of the planned range. lower_bound_bytes: most
            planned bytes that live at once.
        solve_s: seconds in which the layout was found.
        num_steps: by the layout, to their end. num_steps_by_size: without it.
        planned, outside, small: requests of all steps by the layout: at their address; of tensors
            that live on after the step; below the smallest size that is planned.
        unplanned: requests that were not as planned. missing: planned ones that did not come.
        first_departure: what the first of them asked and where; empty if there was none.
    """

    batch: int
    tokens: int
    precision: str
    state: str
    num_requests: int
    peak_bytes: int
    lower_bound_bytes: int
    solve_s: float
    num_steps: int
    num_steps_by_size: int
    planned: int
    outside: int
    small: int
    unplanned: int
    missing: int
    first_departure: str

    def __str__(self) -> str:
        name = f"{self.batch} x {self.tokens:,} tokens in {self.precision}: {self.state}"
        if not self.num_requests:
            return f"{name}; {self.num_steps_by_size:,} steps by size"
        above = self.peak_bytes - self.lower_bound_bytes
        lines = [
            name,
            f"  layout     {self.num_requests:,} requests a step in "
            f"{format_bytes(self.peak_bytes)}, {format_bytes(above)} above the lower bound, "
            f"solved in {self.solve_s:.2f} s",
            f"  steps      {self.num_steps:,} by the layout, {self.num_steps_by_size:,} by size",
            f"  requests   {self.planned:,} planned, {self.unplanned:,} unplanned, "
            f"{self.missing:,} missing; besides {self.outside:,} that outlive their step and "
            f"{self.small:,} too small to plan",
        ]
        if self.first_departure:
            lines.append(f"  departure  {self.first_departure}")
        return "\n".join(lines)
