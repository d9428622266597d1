"""A CUDA device as the runtime calls it: pinned host memory and asynchronous copies of one GPU.

    device = get_cuda_device()             # the current GPU of torch
    host = device.host_alloc(nbytes)
    sent = device.copy_to_host(host, tensor.data_ptr(), nbytes)
    ...                                    # kernels; they must not write the tensor
    sent.wait()                            # torch's current stream waits: the tensor may be freed

Nothing that a training step calls blocks the calling thread, which runs ahead of the GPU. The
tensors' memory is torch's or memo-train's (`memo_train.device._cuda_memory`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from memo_train.device._counters import DeviceCounters
from memo_train.device._cuda_memory import (
    MemoMemory,
    TensorMemory,
    TorchMemory,
    allocator_installed,
    load_cuda,
)
from memo_train.device._device import Device, cap_bytes, positive
from memo_train.device._steps import Events, ReplayCounts, StepAddresses, StepLayout
from memo_train.device.errors import CudaUnavailable

if TYPE_CHECKING:
    from memo_train import _cuda


__all__ = ["CudaDevice", "cuda_devices_made", "get_cuda_device", "load_cuda"]


# Of what is reserved beside a plan's bytes: every range is rounded up to whole pages, and those of
# the step before are given back a little later than the plan thinks.
_ROUNDED_SHARE = 32
_ROUNDED_BYTES = 64 << 20


class _CopyEvent:
    """A point in the copies; the stream that waits for it is looked up when it is told to."""

    def __init__(self, event: _cuda.Event, current_stream: Callable[[], int]) -> None:
        self._event, self._current_stream = event, current_stream

    def done(self) -> bool:
        """Whether the copy has finished; never blocks."""
        return self._event.done()

    def wait(self) -> None:
        """Let the current stream go on only when the copy has finished."""
        self._event.wait(self._current_stream())


class _Transfer:
    """csrc/copies/transfer.h for kernels that go to whatever stream is current at the call.

    That stream is looked up here, before the core takes a lock: Python may collect garbage whenever
    it runs, and a swapped tensor among it gives its host range back under the same lock.
    """

    def __init__(self, transfer: _cuda.Transfer, current_stream: Callable[[], int]) -> None:
        self._transfer, self._current_stream = transfer, current_stream

    def alloc_host(self, nbytes: int, /) -> int:
        """Address of a new host range."""
        return self._transfer.alloc_host(nbytes)

    def retire_host(self, address: int, /) -> None:
        """Give back a host range when its copies are done."""
        self._transfer.retire_host(address)

    def to_host(self, target: int, source: int, shape: tuple[int, int, int, int], /) -> _CopyEvent:
        """Start a copy to the host."""
        event = self._transfer.to_host(target, source, shape, self._current_stream())
        return _CopyEvent(event, self._current_stream)

    def to_device(
        self, target: int, source: int, shape: tuple[int, int, int, int], /
    ) -> _CopyEvent:
        """Start a copy to the device."""
        event = self._transfer.to_device(target, source, shape, self._current_stream())
        return _CopyEvent(event, self._current_stream)

    def all_to_host(self, copies: Sequence[tuple[int, int, int]], /) -> _CopyEvent:
        """Start copies to the host."""
        event = self._transfer.all_to_host(copies, self._current_stream())
        return _CopyEvent(event, self._current_stream)

    def all_to_device(self, copies: Sequence[tuple[int, int, int]], /) -> _CopyEvent:
        """Start copies to the device."""
        event = self._transfer.all_to_device(copies, self._current_stream())
        return _CopyEvent(event, self._current_stream)


class CudaDevice(Device):
    """Pinned host memory and copies of one GPU; several may live in one process.

    Use `get_cuda_device` instead of the constructor, unless kernels go to streams that torch does
    not know of. Methods may be called from any thread.
    """

    # As torch's own allocator rounds; a single block is a scalar or a shape.
    alignment_bytes = 512
    smallest_planned_bytes = 1024

    def __init__(
        self,
        ordinal: int = 0,
        *,
        current_stream: Callable[[], int] | None = None,
        memory: TensorMemory | None = None,
    ) -> None:
        """The GPU `ordinal` of this process.

        current_stream: handle of the stream that kernels go to, asked anew whenever it matters;
            None: torch's current stream.
        memory: who allocates the tensors; None: whoever serves torch.

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
        current_stream = current_stream or _torch_stream(ordinal)
        self.core: _cuda.CudaDevice = module.CudaDevice(ordinal)
        self.torch_device = torch.device("cuda", ordinal)
        self._transfer: _Transfer = _Transfer(module.Transfer(self.core), current_stream)
        self._current_stream = current_stream
        self._torch_memory = memory or TorchMemory(ordinal, self.core.memory_bytes)
        self._memo_memory = memory or MemoMemory(ordinal, current_stream)

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """torch's own generators of the CPU and of this GPU."""
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch has no types here
        return (torch.default_generator, torch.cuda.default_generators[self.core.ordinal])

    @property
    def runs_behind(self) -> bool:
        """A GPU's do: short ones take as long as it takes to ask for them."""
        return True

    @property
    def _memory(self) -> TensorMemory:
        """Decided at every use: torch may get memo-train's allocator later than this device."""
        return self._memo_memory if allocator_installed() else self._torch_memory

    @property
    def default_limit_bytes(self) -> int:
        """Nine tenths of the GPU's memory: the CUDA context and libraries need some of it."""
        return self.core.memory_bytes * 9 // 10

    @property
    def rounding_bytes(self) -> int:
        """Of whoever serves the tensors: caps count the pieces that memory comes in."""
        return self._memory.rounding_bytes

    @property
    def why_no_layouts(self) -> str:
        """Why steps cannot have planned addresses; empty where memo-train's allocator serves."""
        return self._memory.why_no_layouts

    def set_device_cap(self, nbytes: int | None) -> None:
        """Limit what is reserved for tensors, holes included; None: no cap.

        What is in use already is not looked at: with more, the next request is refused.

        Raises:
            InvalidDeviceArgument: not positive.
        """
        self._memory.set_cap(cap_bytes("the device cap", nbytes))

    def set_host_cap(self, nbytes: int | None) -> None:
        """Limit pinned host memory, cached ranges included; None: no cap.

        Raises:
            InvalidDeviceArgument: not positive, or below what is in use.
        """
        self.core.set_host_cap(cap_bytes("the host cap", nbytes))

    def set_large_bytes(self, nbytes: int | None) -> None:
        """Nothing to do: the allocators of a GPU place requests by rules of their own."""

    def reserve_host(self, nbytes: int) -> None:
        """Pin what ranges of `nbytes` together need, now, so that a step need not pin anything.

        Raises:
            HostMemoryExceeded: the machine refuses to pin that much.
        """
        self.core.reserve_host(nbytes + nbytes // _ROUNDED_SHARE + _ROUNDED_BYTES if nbytes else 0)

    def host_free(self, address: int) -> None:
        """Give back what `host_alloc` returned; it counts as used until its copies are done.

        Raises:
            InvalidDeviceArgument: unknown address, or freed before.
        """
        self._transfer.retire_host(positive("host address", address))

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
        """When the kernels given so far are done, in seconds: blocks until then."""
        self.core.synchronize_compute(self._current_stream())
        return self.core.now()

    def owns(self, ptr: int) -> bool:
        """Whether the address `ptr` is memory of this GPU, whoever allocated it."""
        return ptr > 0 and self.core.owns(ptr)

    def counters(self) -> DeviceCounters:
        """All counters at this moment; device memory is the tensors' and `device_alloc`'s.

        The sum of both peaks stands for the peak, which it may exceed.
        """
        tensors, reading = self._memory.read(), self.core.counters()
        own, host = reading.device, reading.host
        return DeviceCounters(
            device_used_bytes=tensors.used_bytes + own.used_bytes,
            device_peak_bytes=tensors.peak_bytes + own.peak_bytes,
            device_high_water_bytes=tensors.reserved_peak_bytes + own.peak_bytes,
            device_live_allocations=tensors.live_allocations + own.live_allocations,
            device_allocations=tensors.allocations + own.allocations,
            device_cap_bytes=tensors.cap_bytes,
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
            stalls=reading.stalls,
            stall_s=reading.stall_s,
        )

    def reset_peak(self) -> None:
        """Let peaks start again from what is in use."""
        self._memory.reset_peak()
        self.core.reset_peak()

    def reset_counters(self) -> None:
        """Set copies, bytes, busy seconds and stalls to zero."""
        self.core.reset_counters()

    def start_recording(self) -> None:
        """Record the tensors' memory from now on. Raises: NoPlannedAddresses."""
        self._memory.start_recording()

    def mark(self, value: int) -> None:
        """Tell a recording or a step under way that it has come to place `value`."""
        self._memory.mark(value)

    def stop_recording(self) -> Events:
        """The events since `start_recording`; empty if it was not called."""
        return self._memory.stop_recording()

    def make_layout(self, addresses: StepAddresses) -> StepLayout:
        """`addresses` for `begin_step`. Raises: InvalidDeviceArgument, NoPlannedAddresses."""
        return self._memory.make_layout(addresses, self.smallest_planned_bytes)

    def begin_step(self, layout: StepLayout) -> bool:
        """Serve the current stream at planned addresses until `end_step`; False without room."""
        return self._memory.begin_step(layout)

    def end_step(self) -> ReplayCounts | None:
        """End the step under way; what it did, or None if none was begun."""
        return self._memory.end_step()


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
        ordinal = torch.cuda.current_device() if torch.cuda.is_available() else 0
    with _lock:
        if ordinal not in _devices:
            _devices[ordinal] = CudaDevice(ordinal)
            # CUDA may be gone before the interpreter is: the device must never be destroyed.
            _devices[ordinal].core.keep_forever()
        device = _devices[ordinal]
    # Raises in a fork, and what a destructor met and could not raise.
    device.core.check_usable()
    return device


def cuda_devices_made() -> tuple[CudaDevice, ...]:
    """The devices that `get_cuda_device` has made in this process."""
    return tuple(_devices.values())


def _torch_stream(ordinal: int) -> Callable[[], int]:
    return lambda: torch.cuda.current_stream(ordinal).cuda_stream
