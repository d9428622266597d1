"""How fast the streams of a schedule are."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_fields
from memo_planner.errors import InvalidInput
from memo_planner.profile import Link
from memo_planner.schedule.operation import Kind, Operation


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Bytes per second of one rank's copies and collectives, with all ranks busy at once.

    Attributes:
        collective_bytes_per_s: None if the schedule has no collectives.
        peak_flops_per_s: what the rank's device can do at most, for MFU; None: unknown.

    Raises: InvalidInput.
    """

    d2h_bytes_per_s: float
    h2d_bytes_per_s: float
    collective_bytes_per_s: float | None = None
    peak_flops_per_s: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, ("d2h_bytes_per_s", "h2d_bytes_per_s"), least=1.0)
        for name in ("collective_bytes_per_s", "peak_flops_per_s"):
            if getattr(self, name) is not None:
                check_fields(self, (name,), least=1.0)

    @classmethod
    def of_link(cls, link: Link, *, peak_flops_per_s: float | None = None) -> Speeds:
        """The speeds a profile measured."""
        return cls(
            d2h_bytes_per_s=link.d2h_bytes_per_s,
            h2d_bytes_per_s=link.h2d_bytes_per_s,
            peak_flops_per_s=peak_flops_per_s,
        )

    def seconds(self, operation: Operation) -> float:
        """What the operation takes once it runs. Raises: InvalidInput: a speed is missing."""
        if not operation.num_bytes:
            return operation.seconds
        if operation.kind is Kind.TO_HOST:
            return operation.num_bytes / self.d2h_bytes_per_s
        if operation.kind is Kind.TO_DEVICE:
            return operation.num_bytes / self.h2d_bytes_per_s
        if self.collective_bytes_per_s is None:
            raise InvalidInput(
                f"the schedule has a collective ({operation}), but Speeds.collective_bytes_per_s "
                "is None; give its speed"
            )
        return operation.num_bytes / self.collective_bytes_per_s
