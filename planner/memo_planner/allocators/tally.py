"""Counters of a simulated allocator, and their peaks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class Tally:
    """Bytes now and at their highest; counts of what happened. Names as in `AllocatorRun`."""

    allocated_bytes: int = 0
    allocated_peak_bytes: int = 0
    reserved_bytes: int = 0
    reserved_peak_bytes: int = 0
    inactive_split_bytes: int = 0
    inactive_split_peak_bytes: int = 0
    segments: int = 0
    num_segments: int = 0
    num_device_allocs: int = 0
    num_device_frees: int = 0
    num_retries: int = 0

    def allocate(self, num_bytes: int) -> None:
        """So many bytes are handed out; fewer than 0 come back."""
        self.allocated_bytes += num_bytes
        if self.allocated_bytes > self.allocated_peak_bytes:
            self.allocated_peak_bytes = self.allocated_bytes

    def reserve(self, num_bytes: int) -> None:
        """So many bytes are taken from the device; fewer than 0 go back."""
        self.reserved_bytes += num_bytes
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)
        if num_bytes > 0:
            self.num_device_allocs += 1
        else:
            self.num_device_frees += 1

    def segment(self, change: int) -> None:
        """A segment more or one less."""
        self.segments += change
        self.num_segments = max(self.num_segments, self.segments)

    def inactive_split(self, num_bytes: int) -> None:
        """Free bytes in split segments grow by so many."""
        self.inactive_split_bytes += num_bytes
        if self.inactive_split_bytes > self.inactive_split_peak_bytes:
            self.inactive_split_peak_bytes = self.inactive_split_bytes
