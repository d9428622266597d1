"""A CUDA device as the runtime calls it: pinned host memory and asynchronous copies of one GPU.

    device = get_cuda_device()             # the current GPU of torch
    host = device.host_alloc(nbytes)
    sent = device.copy_to_host(host, tensor.data_ptr(), nbytes)
    ...                                    # kernels; they must not write the tensor
    sent.wait()                            # torch's current stream waits: the tensor may be freed

Nothing blocks the calling thread, which runs ahead of the GPU. Device memory is torch's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from memo_train.device.arguments import cap_bytes, positive
from memo_train.device.errors import CudaUnavailable
from memo_train.device.transfers import CopyEvent, Transfers

if TYPE_CHECKING:
    from memo_train import _cuda

__all__ = ["CopyEvent", "CudaCounters", "CudaDevice", "get_cuda_device", "load_cuda"]


@dataclass(frozen=True, kw_only=True)
class CudaCounters:
    """A reading of a CUDA device's counters; names as in `DeviceCounters`, where it has them.

    Attributes:
        device_used_bytes: what `device_alloc` gave; torch counts its tensors itself.
        host_used_bytes: pinned ranges handed out, in whole pages; `host_cached_bytes`: pinned
            ranges kept for reuse.
        d2h_copies: copies from device to host asked for (not necessarily done); `h2d_` likewise.
        stalls: how often compute was told to wait for a copy that was not done.
    """

    device_used_bytes: int
    device_peak_bytes: int
    device_allocations: int
    host_used_bytes: int
    host_peak_bytes: int
    host_cached_bytes: int
    host_cap_bytes: int | None
    d2h_copies: int
    d2h_bytes: int
    h2d_copies: int
    h2d_bytes: int
    stalls: int


class CudaDevice(Transfers):
    """Pinned host memory and copies of one GPU; several may live in one process.

    Use `get_cuda_device` instead of the constructor, unless kernels go to streams that torch does
    not know of. Methods may be called from any thread.
    """

    def __init__(
        self, ordinal: int = 0, *, current_stream: Callable[[], int] | None = None
    ) -> None:
        """The GPU `ordinal` of this process.

        current_stream: handle of the stream that kernels go to, asked anew whenever it matters;
            None: torch's current stream.

        Raises:
            CudaUnavailable: built without CUDA, or the process sees no GPU.
            InvalidDeviceArgument: there is no GPU `ordinal`.
            CudaError: CUDA does not work.
        """
        module = load_cuda()
        if module.device_count() == 0:
            raise CudaUnavailable(
                f"CUDA device {ordinal} was asked for, but this process sees no GPU; look at the "
                "driver (nvidia-smi) and at CUDA_VISIBLE_DEVICES, or use the CPU device"
            )
        self.core: _cuda.CudaDevice = module.CudaDevice(
            ordinal, current_stream or _torch_stream(ordinal)
        )
        super().__init__(module.Transfer(self.core))

    def set_host_cap(self, nbytes: int | None) -> None:
        """Limit pinned host memory, cached ranges included; None: no cap.

        Raises:
            InvalidDeviceArgument: not positive, or below what is in use.
        """
        self.core.set_host_cap(cap_bytes("the host cap", nbytes))

    def reserve_host(self, sizes: Iterable[int]) -> None:
        """Pin ranges of these sizes now, all at once, so that a step need not and cannot fail to.

        Raises:
            HostMemoryExceeded: they do not fit under the cap or into the machine.
        """
        ranges: list[int] = []
        try:
            for nbytes in sizes:
                ranges.append(self.host_alloc(nbytes))
        finally:
            for host in ranges:
                self.host_free(host)

    def device_alloc(self, nbytes: int) -> int:
        """Address of `nbytes` bytes of device memory, not from torch.

        Raises:
            DeviceMemoryExceeded: the GPU has not enough left.
            InvalidDeviceArgument: `nbytes` is not positive.
        """
        return self.core.alloc_device(positive("nbytes", nbytes))

    def device_free(self, address: int) -> None:
        """Give back what `device_alloc` returned; wait for its copies first.

        Raises:
            InvalidDeviceArgument: unknown address, or freed before.
        """
        self.core.free_device(positive("device address", address))

    def synchronize(self) -> None:
        """Block until all copies are done."""
        self.core.synchronize()

    def now(self) -> float:
        """Seconds of a clock that never runs backwards; only differences mean something."""
        return self.core.now()

    def owns(self, ptr: int) -> bool:
        """Whether the address `ptr` is memory of this GPU, whoever allocated it."""
        return ptr > 0 and self.core.owns(ptr)

    def counters(self) -> CudaCounters:
        """All counters at this moment."""
        reading = self.core.counters()
        return CudaCounters(
            device_used_bytes=reading.device.used_bytes,
            device_peak_bytes=reading.device.peak_bytes,
            device_allocations=reading.device.allocations,
            host_used_bytes=reading.host.used_bytes,
            host_peak_bytes=reading.host.peak_bytes,
            host_cached_bytes=reading.host.cached_bytes,
            host_cap_bytes=reading.host.cap_bytes,
            d2h_copies=reading.to_host.copies,
            d2h_bytes=reading.to_host.bytes,
            h2d_copies=reading.to_device.copies,
            h2d_bytes=reading.to_device.bytes,
            stalls=reading.stalls,
        )

    def reset_peak(self) -> None:
        """Let peaks start again from what is in use."""
        self.core.reset_peak()

    def reset_counters(self) -> None:
        """Set copies, bytes and stalls to zero."""
        self.core.reset_counters()


def load_cuda() -> ModuleType:
    """The extension module. Raises: CudaUnavailable if memo-train was built without it."""
    try:
        from memo_train import _cuda
    except ImportError as error:
        raise CudaUnavailable(
            "memo-train was built without its CUDA device; build it where a CUDA toolkit is "
            "installed, with MEMO_BUILD_CUDA=1"
        ) from error
    return _cuda


_lock = threading.Lock()
_devices: dict[int, CudaDevice] = {}


def get_cuda_device(ordinal: int | None = None) -> CudaDevice:
    """The device of this process for the GPU `ordinal`, or for torch's current one.

    Raises:
        CudaUnavailable: built without CUDA, or the process sees no GPU.
        InvalidDeviceArgument: there is no GPU `ordinal`.
        ForkedProcess: this process is a fork of the one that made the device.
    """
    if ordinal is None:
        import torch

        ordinal = torch.cuda.current_device() if torch.cuda.is_available() else 0
    with _lock:
        if ordinal not in _devices:
            _devices[ordinal] = CudaDevice(ordinal)
            # CUDA may be gone before the interpreter is: the device must never be destroyed.
            _devices[ordinal].core.keep_forever()
        device = _devices[ordinal]
    device.core.check_usable()
    return device


def _torch_stream(ordinal: int) -> Callable[[], int]:
    import torch

    return lambda: torch.cuda.current_stream(ordinal).cuda_stream
