"""Gives torch's CPU tensors back to the allocator that torch itself has, for comparisons."""

import ctypes
from bisect import bisect_left
from pathlib import Path

from benchmarks.native import compiled
from memo_train.device import CpuDevice
from memo_train.device._cpu import install_hook


def use_posix_allocator(device: CpuDevice) -> None:
    """Serve later tensors with posix_memalign, as torch does; what lives in the arena stays there.

    Nothing can be swapped any more, and no cap holds.
    """
    library = compiled(Path(__file__).with_name("posix_allocator.cc"))
    context, _, free = device.core.arena.hook_entry()
    begin = _arena_start(device)
    end = begin + device.core.arena.counters().reserved_bytes
    library.set_before(*(ctypes.c_void_p(number) for number in (context, free, begin, end)))
    entries = (library.posix_alloc, library.posix_free)
    alloc, free = (ctypes.cast(entry, ctypes.c_void_p).value or 0 for entry in entries)
    install_hook(0, alloc, free)


def _arena_start(device: CpuDevice) -> int:
    """The lowest address of the arena."""
    inside = device.device_alloc(64)
    device.device_free(inside)
    lowest = max(0, inside - device.core.arena.counters().reserved_bytes)
    return lowest + bisect_left(range(lowest, inside), True, key=device.owns)
