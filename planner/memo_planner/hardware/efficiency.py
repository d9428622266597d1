"""The shares of peak speed that a step's parts reach."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_fields, check_text
from memo_planner.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Shares of a device's peak FLOP/s: of its matrix products, and of attention.

    `tile_overhead_s`: seconds that one more tile adds to a pass (launches of small kernels).
    Raises: InvalidInput outside (0, 1].
    """

    linear: float
    attention: float
    tile_overhead_s: float
    source: str

    def __post_init__(self) -> None:
        check_fields(self, ("linear", "attention", "tile_overhead_s"))
        check_text("Efficiency.source", self.source)
        for name in ("linear", "attention"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidInput(
                    f"Efficiency.{name} is {getattr(self, name)}; it is a share of peak, above 0 "
                    "and at most 1"
                )


PAPER = Efficiency(
    linear=0.601,
    attention=0.644,
    tile_overhead_s=2e-4,
    source="fitted on three cells of the paper's 7B ablation by benchmarks/paper_table.py; "
    "assumption for machines other than its A800",
)
"""What the paper's implementation reached on its A800 nodes."""
