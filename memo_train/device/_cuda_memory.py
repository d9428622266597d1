"""The memory of a GPU's tensors: torch's own allocator, or memo-train's with planned addresses.

    install_cuda_allocator()               # before the first CUDA tensor of the process
    ...
    print(cuda_memory(0).reserved_bytes)

Which one serves a process is decided before its first CUDA tensor. memo-train's is there only if
the extension was built with CUDA. Beyond the cap both raise torch.OutOfMemoryError.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import numpy as np
import torch

from memo_train.device._device import cap_bytes
from memo_train.device._hook import build_hook
from memo_train.device._steps import Events, ReplayCounts, StepAddresses, StepLayout
from memo_train.device.errors import CudaUnavailable, NoPlannedAddresses, UncountedMemory

_EVENT = np.dtype([("kind", "<u8"), ("source", "<u8"), ("offset", "<u8"), ("bytes", "<u8")])


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


_installed = False


@dataclass(frozen=True, kw_only=True)
class CudaMemory:
    """What one GPU's allocator has given and has; in the spirit of `torch.cuda.memory_stats`.

    Peaks count from the last `reset_cuda_peak`, all else from the start of the process.

    Attributes:
        allocated_bytes: in live tensors, as rounded.
        reserved_bytes: got from the device.
        pending_bytes: freed, and another stream may still work on it. pending_frees: how many.
        planned_requests: served at their planned address; `unplanned_requests`: by size.
        planned_waits: blocks whose copies a planned address made its stream wait for.
        device_mallocs: calls of cudaMalloc that gave memory; `device_frees`: of cudaFree.
        retries: how often the device or the cap refused, and idle memory was given back first.
        refusals: how often even that was not enough.
    """

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


def install_cuda_allocator() -> None:
    """Let every CUDA tensor of this process come from memo-train. There is no way back.

    Raises:
        CudaUnavailable: built without CUDA.
        HookUnavailable: the hook cannot be compiled or loaded.
        RuntimeError: torch has allocated CUDA memory already; or it was built without CUDA.
    """
    from torch.cuda import memory

    path = load_cuda().__file__
    assert path is not None
    entry = ctypes.CDLL(path)
    hook_path = str(build_hook("cuda_allocator_hook"))
    ctypes.CDLL(hook_path).memo_set_cuda_backend(
        ctypes.cast(entry.memo_cuda_alloc, ctypes.c_void_p),
        ctypes.cast(entry.memo_cuda_free, ctypes.c_void_p),
    )
    allocator: Any = memory.CUDAPluggableAllocator(
        hook_path, "memo_torch_cuda_alloc", "memo_torch_cuda_free"
    )
    # torch tells a pluggable allocator of `record_stream` only where it is given this function.
    record_stream = ctypes.cast(entry.memo_cuda_record_stream, ctypes.c_void_p)
    allocator.allocator().set_record_stream_fn(record_stream.value)
    memory.change_current_allocator(allocator)
    global _installed
    _installed = True


def allocator_installed() -> bool:
    """Whether this process's CUDA tensors come from memo-train."""
    return _installed


def cuda_memory(ordinal: int) -> CudaMemory:
    """The counters of GPU `ordinal` at this moment.

    Raises:
        InvalidDeviceArgument: no GPU can have this number.
    """
    reading = load_cuda().allocator_counters(ordinal)
    return CudaMemory(**{field.name: getattr(reading, field.name) for field in fields(CudaMemory)})


def reset_cuda_peak(ordinal: int) -> None:
    """Let peaks start again from what is in use."""
    load_cuda().allocator_reset_peak(ordinal)


def set_cuda_cap(ordinal: int, nbytes: int | None) -> None:
    """Limit what is reserved on GPU `ordinal` from now on; None: no cap.

    Raises:
        InvalidDeviceArgument: not positive.
    """
    load_cuda().allocator_set_cap(ordinal, cap_bytes("the device cap", nbytes))


def release_cuda_memory(ordinal: int) -> None:
    """Give chunks in which nothing lives back to GPU `ordinal`; waits for the work on them."""
    load_cuda().allocator_release_idle(ordinal)


def cuda_failure() -> str:
    """What went wrong last in a free or in `record_stream`, which cannot raise; or empty."""
    return str(load_cuda().allocator_last_error())


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """Of tensors: bytes now and at most, allocations; reserved for them at most, and the cap."""

    used_bytes: int
    peak_bytes: int
    reserved_peak_bytes: int
    live_allocations: int
    allocations: int
    cap_bytes: int | None


class TensorMemory(ABC):
    """The allocator of one GPU's tensors. why_no_layouts, rounding_bytes: as in `Device`."""

    why_no_layouts = ""
    rounding_bytes = 0

    @abstractmethod
    def read(self) -> MemoryReading:
        """All figures at this moment."""

    @abstractmethod
    def reset_peak(self) -> None:
        """Let peaks start again from what is in use."""

    @abstractmethod
    def set_cap(self, nbytes: int | None) -> None:
        """Limit what is reserved; None: no cap."""

    @abstractmethod
    def start_recording(self) -> None:
        """Record events from now on. Raises: NoPlannedAddresses."""

    @abstractmethod
    def stop_recording(self) -> Events:
        """The events since `start_recording`."""

    @abstractmethod
    def mark(self, value: int) -> None:
        """The step has come to a place."""

    @abstractmethod
    def make_layout(self, addresses: StepAddresses, smallest_bytes: int) -> StepLayout:
        """As `Device.make_layout`. Raises: InvalidDeviceArgument, NoPlannedAddresses."""

    @abstractmethod
    def begin_step(self, layout: StepLayout) -> bool:
        """Serve compute at planned addresses; False if there is no room for the planned range."""

    @abstractmethod
    def end_step(self) -> ReplayCounts | None:
        """End the step under way; None if none was begun."""


class TorchMemory(TensorMemory):
    """torch's caching allocator.

    The cap is `torch.cuda.set_per_process_memory_fraction`: on what torch has reserved, holes
    included, but neither on the CUDA context nor on what libraries take besides. Beyond it torch
    raises torch.OutOfMemoryError.
    """

    why_no_layouts = (
        "torch's own allocator serves this GPU; call memo_train.device._cuda_memory."
        "install_cuda_allocator() before the first CUDA tensor of the process"
    )

    # A segment of each pool is never full: 2 MiB of small tensors, 20 MiB of those up to 10 MiB.
    # Larger ones are rounded up to 2 MiB each, which is the profile's to allow for.
    # Source: c10/cuda/CUDACachingAllocator.cpp, kSmallBuffer and kLargeBuffer.
    rounding_bytes = (2 << 20) + (20 << 20)

    def __init__(self, ordinal: int, total_bytes: int) -> None:
        self._ordinal, self._total_bytes = ordinal, total_bytes

    def read(self) -> MemoryReading:
        """As torch counts. Source: torch.cuda.memory_stats. Raises: UncountedMemory."""
        self._check_counted()
        # Not `memory_stats`: a profile reads thousands of times, and flattening them takes longer
        # than a short stage.
        stats = torch.cuda.memory_stats_as_nested_dict(self._ordinal)

        def of_all_pools(name: str, which: str) -> int:
            return int(stats.get(name, {}).get("all", {}).get(which, 0))  # empty before first use

        fraction = torch.cuda.memory.get_per_process_memory_fraction(self._ordinal)
        return MemoryReading(
            used_bytes=of_all_pools("allocated_bytes", "current"),
            peak_bytes=of_all_pools("allocated_bytes", "peak"),
            reserved_peak_bytes=of_all_pools("reserved_bytes", "peak"),
            live_allocations=of_all_pools("allocation", "current"),
            allocations=of_all_pools("allocation", "allocated"),
            cap_bytes=None if fraction >= 1 else round(fraction * self._total_bytes),
        )

    def reset_peak(self) -> None:
        """torch's own, for everybody in the process. Raises: UncountedMemory."""
        self._check_counted()
        torch.cuda.reset_peak_memory_stats(self._ordinal)

    def set_cap(self, nbytes: int | None) -> None:
        """As a part of the GPU's memory; more than all of it is no cap. Raises: UncountedMemory."""
        self._check_counted()
        fraction = 1.0 if nbytes is None else min(nbytes / self._total_bytes, 1.0)
        torch.cuda.set_per_process_memory_fraction(fraction, self._ordinal)

    def _check_counted(self) -> None:
        # Of a pluggable allocator torch counts nothing and limits nothing: its functions raise.
        if torch.cuda.get_allocator_backend() == "pluggable":
            raise UncountedMemory(
                f"the tensors of CUDA device {self._ordinal} come from a pluggable allocator that "
                "is not memo-train's, and torch counts nothing for it: leave torch's own allocator "
                "in place, or call memo_train.device._cuda_memory.install_cuda_allocator() instead"
            )

    def start_recording(self) -> None:
        """Record events from now on. Raises: NoPlannedAddresses."""
        raise NoPlannedAddresses(f"a step cannot be recorded: {self.why_no_layouts}")

    def stop_recording(self) -> Events:
        """Never any."""
        return np.empty(0, _EVENT)

    def mark(self, value: int) -> None:
        """Nobody listens."""

    def make_layout(self, addresses: StepAddresses, smallest_bytes: int) -> StepLayout:
        """As `Device.make_layout`. Raises: NoPlannedAddresses."""
        raise NoPlannedAddresses(f"a step cannot be served by its layout: {self.why_no_layouts}")

    def begin_step(self, layout: StepLayout) -> bool:
        """Never."""
        return False

    def end_step(self) -> ReplayCounts | None:
        """None has begun."""
        return None


class MemoMemory(TensorMemory):
    """memo-train's allocator (`cuda_allocator`): planned addresses, and a cap on what it reserved.

    Beyond the cap torch raises torch.OutOfMemoryError.
    """

    def __init__(self, ordinal: int, current_stream: Callable[[], int]) -> None:
        self._ordinal, self._current_stream = ordinal, current_stream
        self._module = load_cuda()

    def read(self) -> MemoryReading:
        """As the allocator counts."""
        memory = cuda_memory(self._ordinal)
        allocations = memory.planned_requests + memory.unplanned_requests
        return MemoryReading(
            used_bytes=memory.allocated_bytes,
            peak_bytes=memory.allocated_peak_bytes,
            reserved_peak_bytes=memory.reserved_peak_bytes,
            live_allocations=allocations - memory.frees,
            allocations=allocations,
            cap_bytes=memory.cap_bytes,
        )

    def reset_peak(self) -> None:
        """The allocator's, for everybody in the process."""
        reset_cuda_peak(self._ordinal)

    def set_cap(self, nbytes: int | None) -> None:
        """On reserved bytes, chunks and planned range together."""
        set_cuda_cap(self._ordinal, nbytes)

    def start_recording(self) -> None:
        """Record the allocator's events; source 0 is torch's current stream."""
        self._module.start_recording(self._ordinal, self._current_stream())

    def stop_recording(self) -> Events:
        """The events since `start_recording`."""
        rows: np.ndarray[tuple[int, int], np.dtype[np.uint64]]
        rows = self._module.stop_recording(self._ordinal)
        events: Events = rows.reshape(-1).view(_EVENT)
        return events

    def mark(self, value: int) -> None:
        """The step has come to a place."""
        self._module.mark(self._ordinal, value)

    def make_layout(self, addresses: StepAddresses, smallest_bytes: int) -> StepLayout:
        """`addresses` as the allocator takes them. Raises: InvalidDeviceArgument."""
        requests, marks = addresses.pairs(self._module.StepLayout.OUTSIDE)
        layout: StepLayout = self._module.StepLayout(requests, marks, smallest_bytes)
        return layout

    def begin_step(self, layout: StepLayout) -> bool:
        """Serve torch's current stream; False if the GPU has no room for the planned range."""
        begun: bool = self._module.begin_step(self._ordinal, layout, self._current_stream())
        return begun

    def end_step(self) -> ReplayCounts | None:
        """End the step under way."""
        counts: ReplayCounts | None = self._module.end_step(self._ordinal)
        return counts
