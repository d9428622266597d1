"""Types of the CUDA device's module. Its contracts are in csrc/device.h and csrc/cuda."""

from collections.abc import Sequence

import numpy as np

from memo_train.device._steps import Departure as Departure
from memo_train.device._steps import ReplayCounts as ReplayCounts

COMPILER: str
CUDA_VERSION: str

def device_count() -> int:
    """How many GPUs this process sees; 0 without a driver."""

class CudaMemoryCounters:
    used_bytes: int
    peak_bytes: int
    live_allocations: int
    allocations: int

class HostPoolCounters:
    used_bytes: int
    peak_bytes: int
    cached_bytes: int
    cap_bytes: int | None

class LinkCounters:
    copies: int
    bytes: int
    busy_s: float

class CudaCounters:
    device: CudaMemoryCounters
    host: HostPoolCounters
    to_host: LinkCounters
    to_device: LinkCounters
    stalls: int
    stall_s: float

class CudaDevice:
    ordinal: int
    memory_bytes: int
    numa_node: int
    def __init__(self, ordinal: int) -> None: ...
    def check_usable(self) -> None: ...
    def alloc_device(self, bytes: int, /) -> int: ...
    def free_device(self, data: int, /) -> None: ...
    def owns(self, data: int, /) -> bool: ...
    def reserve_host(self, bytes: int, /) -> None: ...
    def set_host_cap(self, bytes: int | None, /) -> None: ...
    def synchronize(self) -> None: ...
    def synchronize_compute(self, compute: int) -> None: ...
    def now(self) -> float: ...
    def counters(self) -> CudaCounters: ...
    def reset_peak(self) -> None: ...
    def reset_counters(self) -> None: ...
    def keep_forever(self) -> None: ...

class Event:
    """A point in the copies given to the device."""

    def done(self) -> bool:
        """Whether the copy has finished; never blocks."""

    def wait(self, compute: int) -> None:
        """Let the stream go on only when the copy has finished; the caller goes on at once."""

class Transfer:
    """compute: handle of the stream that kernels go to now."""

    def __init__(self, device: CudaDevice) -> None: ...
    def alloc_host(self, bytes: int, /) -> int: ...
    def retire_host(self, data: int, /) -> None: ...
    def to_host(
        self, target: int, source: int, shape: tuple[int, int, int, int], compute: int, /
    ) -> Event: ...
    def to_device(
        self, target: int, source: int, shape: tuple[int, int, int, int], compute: int, /
    ) -> Event: ...
    def all_to_host(self, copies: Sequence[tuple[int, int, int]], compute: int, /) -> Event: ...
    def all_to_device(self, copies: Sequence[tuple[int, int, int]], compute: int, /) -> Event: ...

class StepLayout:
    """requests: bytes and offset of each, uint64 [n, 2]; marks: value and first, uint64 [m, 2]."""

    OUTSIDE: int
    peak_bytes: int
    def __init__(
        self,
        requests: np.ndarray[tuple[int, int], np.dtype[np.uint64]],
        marks: np.ndarray[tuple[int, int], np.dtype[np.uint64]],
        smallest_bytes: int,
    ) -> None: ...
    def __len__(self) -> int: ...

class CudaAllocatorCounters:
    allocated_bytes: int
    allocated_peak_bytes: int
    reserved_bytes: int
    reserved_peak_bytes: int
    pending_bytes: int
    pending_frees: int
    planned_requests: int
    unplanned_requests: int
    frees: int
    planned_waits: int
    device_mallocs: int
    device_frees: int
    retries: int
    refusals: int
    cap_bytes: int | None

def allocator_counters(ordinal: int, /) -> CudaAllocatorCounters: ...
def allocator_reset_peak(ordinal: int, /) -> None: ...
def allocator_set_cap(ordinal: int, cap_bytes: int | None) -> None: ...
def allocator_release_idle(ordinal: int, /) -> None: ...
def allocator_last_error() -> str:
    """What went wrong last where nobody could be told; empty if nothing has."""

ALIGNMENT_BYTES: int

def start_recording(ordinal: int, stream: int) -> None: ...
def stop_recording(ordinal: int, /) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Kind, source, offset (an address) and bytes of each event: [events, 4]."""

def begin_step(ordinal: int, layout: StepLayout, stream: int) -> bool: ...
def mark(ordinal: int, value: int, /) -> None: ...
def end_step(ordinal: int, /) -> ReplayCounts | None: ...
