"""Device memory of torch's CUDA tensors from memo-train: planned addresses, chunks, counters.

    install_cuda_allocator()               # before the first CUDA tensor of the process
    ...
    print(cuda_memory(0).reserved_bytes)

torch does not look at whether a pluggable allocator had memory: where it has not, kernels get a
null pointer. `cuda_refusal` says why.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from typing import Any

from memo_train.device.arguments import cap_bytes
from memo_train.device.cuda_module import load_cuda

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
        RuntimeError: torch has allocated CUDA memory already; or it was built without CUDA.
    """
    from torch.cuda import memory

    path = load_cuda().__file__
    assert path is not None
    allocator: Any = memory.CUDAPluggableAllocator(path, "memo_cuda_alloc", "memo_cuda_free")
    record_stream = ctypes.cast(ctypes.CDLL(path).memo_cuda_record_stream, ctypes.c_void_p)
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


def cuda_refusal() -> str:
    """Why torch was last refused device memory; empty if it never was."""
    return str(load_cuda().allocator_last_error())
