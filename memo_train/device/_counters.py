"""What the device has in use and has done: one immutable reading."""

from dataclasses import dataclass

from memo_train import _core


@dataclass(frozen=True, kw_only=True)
class DeviceCounters:
    """A reading of all counters.

    Peaks count from the last `reset_peak`; copies, busy seconds and stalls from the last
    `reset_counters`. A cap of `None` means no cap.

    Attributes:
        device_used_bytes: live device memory, every allocation as the device rounds it.
        device_peak_bytes: most of it at once.
        device_high_water_bytes: what the cap limits, at its most: on the CPU the highest end of an
            allocation, counted from the arena's start; on a GPU what the allocator had reserved.
            The difference to the peak is lost to fragmentation.
        device_live_allocations: number of live allocations.
        device_allocations: number of allocations ever made.
        host_used_bytes: host ranges handed out, in whole pages.
        host_cached_bytes: freed ranges kept for reuse; used and cached stay under the cap together.
        d2h_copies: copies from device to host asked for (not necessarily done); `h2d_` likewise.
        d2h_busy_s: seconds during which at least one such copy was under way; on a GPU of copies
            that are over, by its own clock.
        stalls: how often compute had to wait in `CopyEvent.wait`. On a GPU: was told to wait for
            a copy that was not done yet when the host, which runs ahead, said so.
        stall_s: seconds it stood still for that; on a GPU by its own clock, of waits that are over.
    """

    device_used_bytes: int
    device_peak_bytes: int
    device_high_water_bytes: int
    device_live_allocations: int
    device_allocations: int
    device_cap_bytes: int | None
    host_used_bytes: int
    host_peak_bytes: int
    host_cached_bytes: int
    host_cap_bytes: int | None
    d2h_copies: int
    d2h_bytes: int
    d2h_busy_s: float
    h2d_copies: int
    h2d_bytes: int
    h2d_busy_s: float
    stalls: int
    stall_s: float


@dataclass(frozen=True, kw_only=True)
class CpuCounters(DeviceCounters):
    """The CPU device's. device_largest_hole_bytes: largest request that would be served now."""

    device_largest_hole_bytes: int


def read_counters(core: _core.CpuDevice) -> CpuCounters:
    """The counters of `core` at this moment."""
    reading = core.counters()
    device, host = reading.device, reading.host
    return CpuCounters(
        device_used_bytes=device.used_bytes,
        device_peak_bytes=device.peak_bytes,
        device_high_water_bytes=device.high_water_bytes,
        device_largest_hole_bytes=device.largest_hole_bytes,
        device_live_allocations=device.live_allocations,
        device_allocations=device.allocations,
        device_cap_bytes=device.cap_bytes,
        host_used_bytes=host.used_bytes,
        host_peak_bytes=host.peak_bytes,
        host_cached_bytes=host.cached_bytes,
        host_cap_bytes=host.cap_bytes,
        d2h_copies=reading.to_host.copies,
        d2h_bytes=reading.to_host.bytes,
        d2h_busy_s=reading.to_host.busy_s,
        h2d_copies=reading.to_device.copies,
        h2d_bytes=reading.to_device.bytes,
        h2d_busy_s=reading.to_device.busy_s,
        stalls=reading.stalls.stalls,
        stall_s=reading.stalls.seconds,
    )
