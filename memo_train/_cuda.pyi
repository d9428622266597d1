"""Types of the CUDA device's module. Its contracts are in the headers under csrc/device."""

from collections.abc import Callable

COMPILER: str
CUDA_VERSION: str

def device_count() -> int:
    """How many GPUs this process sees; 0 without a driver."""

class CudaMemoryCounters:
    used_bytes: int
    peak_bytes: int
    allocations: int

class HostPoolCounters:
    used_bytes: int
    peak_bytes: int
    cached_bytes: int
    cap_bytes: int | None

class LinkCounters:
    copies: int
    bytes: int

class CudaCounters:
    device: CudaMemoryCounters
    host: HostPoolCounters
    to_host: LinkCounters
    to_device: LinkCounters
    stalls: int

class CudaDevice:
    ordinal: int
    numa_node: int
    def __init__(self, ordinal: int, current_stream: Callable[[], int]) -> None: ...
    def check_usable(self) -> None: ...
    def alloc_device(self, bytes: int, /) -> int: ...
    def free_device(self, data: int, /) -> None: ...
    def owns(self, data: int, /) -> bool: ...
    def set_host_cap(self, bytes: int | None, /) -> None: ...
    def synchronize(self) -> None: ...
    def now(self) -> float: ...
    def counters(self) -> CudaCounters: ...
    def reset_peak(self) -> None: ...
    def reset_counters(self) -> None: ...
    def keep_forever(self) -> None: ...

class Event:
    """A point in the copies given to the device."""

    def done(self) -> bool:
        """Whether the copy has finished; never blocks."""

    def wait(self) -> None:
        """Let compute go on only when the copy has finished; the caller goes on at once."""

class Transfer:
    def __init__(self, device: CudaDevice) -> None: ...
    def alloc_host(self, bytes: int, /) -> int: ...
    def retire_host(self, data: int, /) -> None: ...
    def to_host(self, target: int, source: int, shape: tuple[int, int, int, int], /) -> Event: ...
    def to_device(self, target: int, source: int, shape: tuple[int, int, int, int], /) -> Event: ...
