"""The CPU device: torch's CPU tensors in an arena with a cap, a host pool, copies on threads.

    device = get_cpu_device()              # from now on torch's CPU tensors lie in its arena
    device.set_device_cap(2 << 30)

What puts torch's tensors there is a hook (`_hook.py`).
"""

import ctypes
import os
import threading
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from memo_train import _core
from memo_train.device._counters import CpuCounters, read_counters
from memo_train.device._device import Device, bytes_per_s, cap_bytes, memory_share_bytes, positive
from memo_train.device._hook import build_hook
from memo_train.device._steps import Events, ReplayCounts, StepAddresses, StepLayout
from memo_train.device.errors import ForkedProcess, HookUnavailable, InvalidDeviceArgument

_HOOK_NAME = "cpu_allocator_hook"
# Address space is free: fragmentation without a cap must not exhaust it, nor a step that is only
# traced, whose memory is never touched. Where the system gives less, the arena takes what it gets.
_RESERVE_BYTES = 64 << 40
_REQUEST = np.dtype([("bytes", "<u8"), ("offset", "<u8")])
_MARK = np.dtype([("value", "<u8"), ("first", "<u8")])


def install_hook(context: int, alloc: int, free: int) -> None:
    """Let every later CPU tensor of this process come from an arena.

    Tensors that exist keep their memory and are freed as before. There is no way back.

    Args:
        context: address that is passed through to both functions.
        alloc: address of `void* (void* context, size_t bytes, char* error, size_t error_bytes)`.
        free: address of `void (void* context, void* data)`.

    Raises:
        HookUnavailable: the hook cannot be compiled or loaded, or torch does not accept it.
    """
    library = ctypes.CDLL(str(build_hook(_HOOK_NAME)))
    install = library.memo_install_cpu_allocator
    install.argtypes = [ctypes.c_size_t] * 3
    install.restype = ctypes.c_int
    if install(context, alloc, free) != 1:
        raise HookUnavailable(
            "another allocator with a higher priority serves torch's CPU tensors; "
            "create the CPU device before the library that installs it"
        )


class CpuDevice(Device):
    """Device memory, host pool and copies of this process.

    Use `get_cpu_device` instead of the constructor, unless torch is not to allocate from it.
    Methods may be called from any thread.
    """

    torch_device = torch.device("cpu")
    alignment_bytes = 64
    smallest_planned_bytes = 512
    why_no_layouts = ""

    def __init__(self, *, reserve_bytes: int | None = None) -> None:
        """Reserve addresses for device memory: `reserve_bytes`, or 64 TiB, or what there is."""
        reserve_bytes = _RESERVE_BYTES if reserve_bytes is None else reserve_bytes
        self.core = _core.CpuDevice(positive("reserve_bytes", reserve_bytes))
        self._transfer: _core.Transfer = _core.Transfer(self.core)

    @cached_property
    def _arena(self) -> _core.Arena:
        """Looked up once: it is asked many times for each tile."""
        return self.core.arena

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """torch's own generator of the CPU."""
        return (torch.default_generator,)

    @property
    def default_limit_bytes(self) -> int:
        """Half of the machine's memory: the other half is the host pool's."""
        return memory_share_bytes() // 2

    def set_device_cap(self, nbytes: int | None) -> None:
        """Limit the highest address of device memory, so that fragmentation counts; None: no cap.

        Raises:
            InvalidDeviceArgument: not positive, or below the end of live memory.
        """
        self.core.arena.set_cap(cap_bytes("the device cap", nbytes))

    def set_host_cap(self, nbytes: int | None) -> None:
        """Limit the host pool, cached ranges included; None: no cap.

        Raises:
            InvalidDeviceArgument: not positive, or below what is in use.
        """
        self.core.host_pool.set_cap(cap_bytes("the host cap", nbytes))

    def set_large_bytes(self, nbytes: int | None) -> None:
        """Under a cap, place requests from this size on from the top down, smaller ones bottom up.

        None: from a share of what is free when the cap is set. Changes addresses, never results.

        Raises:
            InvalidDeviceArgument: not positive.
        """
        self.core.arena.set_large_bytes(
            None if nbytes is None else positive("the smallest large request", nbytes)
        )

    def set_bandwidth(self, d2h_bytes_per_s: float | None, h2d_bytes_per_s: float | None) -> None:
        """Limit copies in each direction, all streams of it together; None: as fast as memory is.

        Raises:
            InvalidDeviceArgument: not finite or not positive; neither limit has changed.
        """
        self.core.set_bandwidth(
            bytes_per_s("d2h", d2h_bytes_per_s), bytes_per_s("h2d", h2d_bytes_per_s)
        )

    def host_free(self, address: int) -> None:
        """Give back what `host_alloc` returned.

        Raises:
            InvalidDeviceArgument: unknown address, freed before, or a copy of it is not done.
        """
        self._transfer.free_host(positive("host address", address))

    def device_alloc(self, nbytes: int) -> int:
        """Address of `nbytes` bytes in the arena, 64-byte aligned, as tensors get them.

        Raises:
            DeviceMemoryExceeded: over the device cap.
            InvalidDeviceArgument: `nbytes` is not positive.
        """
        return self.core.arena.alloc(positive("nbytes", nbytes))

    def device_free(self, address: int) -> None:
        """Give back what `device_alloc` returned, at once: copies are not waited for.

        Raises:
            InvalidDeviceArgument: unknown address, or freed before.
        """
        self.core.arena.free(positive("device address", address))

    def synchronize(self) -> None:
        """Block until all copies are done. Not counted as a stall."""
        self.core.synchronize()

    def now(self) -> float:
        """Seconds of a clock that never runs backwards; only differences mean something."""
        return self.core.now()

    def owns(self, ptr: int) -> bool:
        """Whether the address `ptr` is device memory: in the arena's range of addresses."""
        return ptr > 0 and self._arena.owns(ptr)

    def counters(self) -> CpuCounters:
        """All counters at this moment."""
        return read_counters(self.core)

    def reset_peak(self) -> None:
        """Let peaks and high water start again from what is in use."""
        self.core.reset_peak()

    def start_recording(self) -> None:
        """Record device memory's events from now on; a recording under way starts anew."""
        self.core.arena.start_recording()

    def mark(self, value: int) -> None:
        """Put `value`, in [0, 2**64), among the recorded events; nothing if none are recorded."""
        self._arena.mark(value)

    def stop_recording(self) -> Events:
        """The events since `start_recording`, in order; empty if it was not called."""
        return self.core.arena.stop_recording()

    def make_layout(self, addresses: StepAddresses) -> StepLayout:
        """`addresses` as the arena takes them. Raises: InvalidDeviceArgument."""
        requests, marks = addresses.pairs(_core.StepLayout.OUTSIDE)
        # Views of the same memory as records, so that nothing is copied.
        return _core.StepLayout(
            requests.view(_REQUEST)[:, 0], marks.view(_MARK)[:, 0], self.smallest_planned_bytes
        )

    def begin_step(self, layout: StepLayout) -> bool:
        """Serve this thread's requests at their planned addresses until `end_step`.

        False if no hole is large enough for the layout's peak: the step is then like any other.
        """
        assert isinstance(layout, _core.StepLayout)
        return self.core.arena.begin_step(layout)

    def end_step(self) -> ReplayCounts | None:
        """End the step under way; what it did, or None if none was begun."""
        return self.core.arena.end_step()

    def reset_counters(self) -> None:
        """Set copies, bytes, busy seconds and stalls to zero."""
        self.core.reset_counters()

    def adversary(self, seed: int | None) -> None:
        """Test mode: delay and reorder all that the contract allows, chosen by `seed`; None: off.

        Copies run when somebody waits for them or much later, in random pieces. With `poison`, a
        missing wait or an early free shows as NaN.

        Raises:
            InvalidDeviceArgument: seed outside [0, 2**64).
        """
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 1 << 64):
            raise InvalidDeviceArgument(f"an adversary's seed must be in [0, 2**64), got {seed}")
        self.core.set_adversary(seed)

    def poison(self, on: bool) -> None:
        """Test mode: fill freed and fresh memory with 0xFF bytes, NaN in every float type."""
        self.core.set_poison(on)


_lock = threading.Lock()
_device: CpuDevice | None = None
_owner_pid = 0


def get_cpu_device() -> CpuDevice:
    """The CPU device of this process; the first call makes it and gives it torch's tensors.

    Raises:
        HookUnavailable: torch cannot be made to allocate from the arena.
        ForkedProcess: this process is a fork of one that made the device.
    """
    global _device, _owner_pid
    with _lock:
        if _device is None:
            _device, _owner_pid = _make_process_device(), os.getpid()
    if _owner_pid != os.getpid():
        raise ForkedProcess(
            f"process {os.getpid()} was forked from process {_owner_pid}, which owns the CPU "
            "device; start worker processes with the spawn method"
        )
    return _device


def cpu_device_if_made() -> CpuDevice | None:
    """The CPU device of this process if `get_cpu_device` has made it."""
    return _device


def _make_process_device() -> CpuDevice:
    device = CpuDevice()
    arena = device.core.arena
    install_hook(*arena.hook_entry())
    # Tensors may be freed after the interpreter is gone: the arena must never go away.
    device.core.keep_forever()
    # A fork while another thread allocates would leave the child a lock that nobody opens.
    os.register_at_fork(
        before=arena.lock_for_fork,
        after_in_parent=arena.unlock_after_fork,
        after_in_child=arena.unlock_after_fork,
    )
    # torch may accept the hook and yet allocate elsewhere: one tensor shows.
    if not device.owns(torch.empty(1).data_ptr()):
        raise HookUnavailable(f"torch {torch.__version__} does not allocate from the hook")
    return device
