"""Device bytes that a plan leaves free, block by block, which copies under way may use."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_int
from memo_planner.errors import InvalidInput
from memo_planner.plan import Plan
from memo_planner.programme import (
    NO_LIMIT_BYTES,
    free_bytes,
    peak_points,
    step_points,
)


@dataclass(frozen=True, kw_only=True)
class CopyBudget:
    """How far copies may run behind forward and ahead of backward.

    Attributes:
        in_flight_bytes: [blocks] device bytes, free in a block's forward, of tensors on their way
            to the host.
        ahead_bytes: [blocks] device bytes, free in a block's backward, of tensors that return
            before their turn.
        park_pre: whether what pre saved waits on the host while attention's backward runs.
    """

    in_flight_bytes: tuple[int, ...]
    ahead_bytes: tuple[int, ...]
    park_pre: bool = False

    def __post_init__(self) -> None:
        if len(self.in_flight_bytes) != len(self.ahead_bytes):
            raise InvalidInput(
                f"CopyBudget has {len(self.in_flight_bytes)} blocks in in_flight_bytes and "
                f"{len(self.ahead_bytes)} in ahead_bytes; it needs both of every block"
            )
        for name in ("in_flight_bytes", "ahead_bytes"):
            for block, value in enumerate(getattr(self, name)):
                check_int(f"CopyBudget.{name}[{block}]", value, 0, NO_LIMIT_BYTES)

    @classmethod
    def of(cls, plan: Plan, *, park_pre: bool = False) -> CopyBudget:
        """The bytes that `plan` leaves free at each point of its step, less some for holes."""
        num_blocks = len(plan.policy.blocks)
        points = step_points(plan.profile, plan.policy)
        free = [free_bytes(plan.profile, plan.limits, point) for point in points]
        forward, loss, backward = free[:num_blocks], free[num_blocks], free[num_blocks + 1 :]
        forward[-1] = min(forward[-1], loss)  # what the last block sends is under way in the loss
        forward = [min(pair) for pair in zip(forward, _below_peak(plan), strict=True)]
        return cls(
            in_flight_bytes=tuple(forward),
            ahead_bytes=tuple(reversed(backward)),
            park_pre=park_pre,
        )

    @classmethod
    def same(
        cls, num_blocks: int, *, in_flight_bytes: int, ahead_bytes: int, park_pre: bool = False
    ) -> CopyBudget:
        """The same for every block."""
        return cls(
            in_flight_bytes=(in_flight_bytes,) * num_blocks,
            ahead_bytes=(ahead_bytes,) * num_blocks,
            park_pre=park_pre,
        )


def _below_peak(plan: Plan) -> list[int]:
    """Bytes [blocks] by which forward is below the step's peak; the last block's with the loss.

    So tensors on their way to the host never make the step's peak.
    """
    if not plan.profile.kinds:
        return [NO_LIMIT_BYTES] * len(plan.policy.blocks)
    num_blocks, peak = len(plan.policy.blocks), plan.prediction.device_peak_bytes
    alive = peak_points(plan.profile, plan.policy, plan.limits)
    room = [max(0, peak - point.device_bytes) for point in alive[: num_blocks + 1]]
    return [*room[: num_blocks - 1], min(room[num_blocks - 1 :])]
