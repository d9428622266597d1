"""What came of serving one step's requests by one allocator."""

from __future__ import annotations

from dataclasses import dataclass, fields

from memo_planner.checks import check_int
from memo_planner.errors import InvalidInput, MemoError


class SimulatedOutOfMemory(MemoError):
    """A simulated allocator refuses a request: it does not fit the device's cap."""


@dataclass(frozen=True, kw_only=True)
class AllocatorRun:
    """One allocator's memory for one step's requests.

    Attributes:
        allocator: its name. is_measured: run for real; false for a simulation by published rules.
        requested_peak_bytes: most bytes alive at once as requested, without any rounding.
        allocated_peak_bytes: most bytes handed out at once, each in the allocator's rounding.
        reserved_peak_bytes: most bytes taken from the device (or, of one range of addresses, the
            highest end of anything handed out).
        inactive_split_peak_bytes: most bytes at once in free blocks that share their segment with
            live ones and so cannot be given back; 0 where an allocator has no such notion.
        num_segments: most segments at once. num_device_allocs, num_device_frees: how often memory
            was taken from the device and given back. num_retries: how often the cache was emptied
            for a request that did not fit.
        refused_id: the request at which memory ran out, where the run ended; None if all fitted.

    Raises: InvalidInput if more is allocated than reserved, or a figure is below 0.
    """

    allocator: str
    is_measured: bool = False
    requested_peak_bytes: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    inactive_split_peak_bytes: int = 0
    num_segments: int = 1
    num_device_allocs: int = 1
    num_device_frees: int = 0
    num_retries: int = 0
    refused_id: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name.endswith("_bytes") or field.name.startswith("num_"):
                check_int(f"AllocatorRun.{field.name}", getattr(self, field.name), 0)
        if self.allocated_peak_bytes > self.reserved_peak_bytes:
            raise InvalidInput(
                f"{self.allocator} has {self.allocated_peak_bytes:,} bytes allocated of only "
                f"{self.reserved_peak_bytes:,} reserved"
            )

    @property
    def fragmentation(self) -> float:
        """Share of the reserved peak that a perfect allocator would not have needed.

        1 - allocated peak / reserved peak, each the most over the step; rounding is on both sides.
        0.0 for a step without requests.
        """
        if not self.reserved_peak_bytes:
            return 0.0
        return 1 - self.allocated_peak_bytes / self.reserved_peak_bytes
