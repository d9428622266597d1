"""The integer problem behind a plan: how many blocks follow each block policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memo_planner.cost import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class BlockCounts:
    """Choose counts [policies] of blocks: least total cost within the room on device and host.

    Attributes:
        num_blocks: blocks to hand out. cost_s, kept_bytes, swapped_bytes: per policy.
        gap_s: how far above the optimum a solution may stay.
        device_room_bytes, host_room_bytes: None means no limit.
    """

    num_blocks: int
    cost_s: Floats
    kept_bytes: Floats
    swapped_bytes: Floats
    gap_s: float
    device_room_bytes: int | None
    host_room_bytes: int | None

    @property
    def rooms(self) -> list[tuple[Floats, int]]:
        """Bytes per policy and their room, for each limit there is."""
        pairs = (
            (self.kept_bytes, self.device_room_bytes),
            (self.swapped_bytes, self.host_room_bytes),
        )
        return [(per_block, room) for per_block, room in pairs if room is not None]

    def bound_s(self, prices: tuple[float, ...]) -> float:
        """Cost that no counts which fit undercut: bytes are paid for, and all room is refunded.

        prices: seconds per byte of each of `rooms`, 0 or more. The bound holds for any prices, and
        is as high as the relaxed problem's at those of its solution.
        """
        each_s, refund_s = self.cost_s, 0.0
        for (per_block, room), s_per_byte in zip(self.rooms, prices, strict=True):
            each_s = each_s + per_block * s_per_byte
            refund_s += room * s_per_byte
        return self.num_blocks * float(np.min(each_s)) - refund_s

    def total_s(self, counts: Ints) -> float:
        """Cost of `counts`."""
        return float(counts @ self.cost_s)

    def excess(self, counts: Ints) -> float:
        """Largest share by which `counts` exceed a room, in whole bytes; 0 if they fit."""
        worst = 0.0
        for per_block, room in self.rooms:
            used = sum(int(n) * int(b) for n, b in zip(counts, per_block, strict=True) if n)
            worst = max(worst, (used - room) / max(room, 1))
        return worst

    def fits(self, counts: Ints) -> bool:
        """Whether `counts` hand out all blocks and respect every limit, in whole bytes."""
        return int(counts.sum()) == self.num_blocks and self.excess(counts) == 0
