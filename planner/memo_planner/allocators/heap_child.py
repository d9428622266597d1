"""The process that `glibc` starts: serves requests by this process's C library and measures it.

Standard input: int64 numbers, machine order: how many requests and steps, their sizes, the events
(`_replay.event_order`). Standard output: one JSON object. Imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import json
import sys
from array import array

ALIGNMENT_BYTES = 64
"""PyTorch's alignment on CPU. Source: `gAlignment` in c10/core/alignment.h."""


class _HeapInfo(ctypes.Structure):
    """What mallinfo2 returns. Source: mallinfo(3)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def main() -> None:
    """Measure, and print the figures."""
    numbers = array("q", sys.stdin.buffer.read()).tolist()
    num, num_steps = numbers[:2]
    heap = _Heap(numbers[2 : 2 + num])
    refused = None
    for _ in range(num_steps):
        refused = heap.step(numbers[2 + num :])
        if refused is not None:
            break
    print(json.dumps({"reserved_peak_bytes": heap.reserved_peak_bytes, "refused": refused}))


class _Heap:
    def __init__(self, sizes: list[int]) -> None:
        libc = ctypes.CDLL(None)
        self._info = libc.mallinfo2
        self._info.restype = _HeapInfo
        self._memalign = libc.posix_memalign
        self._memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._free = libc.free
        self._free.argtypes = [ctypes.c_void_p]
        self._free.restype = None
        self._sizes = sizes
        self._live = (ctypes.c_void_p * len(sizes))()
        # Last: what Python has taken by now is not the step's.
        self._before = self._reserved()
        self.reserved_peak_bytes = 0

    def _reserved(self) -> int:
        info = self._info()
        return int(info.arena + info.hblkhd)

    def step(self, events: list[int]) -> int | None:
        """Serve all events of a step; the request that was refused, if one was."""
        num = len(self._sizes)
        width = ctypes.sizeof(ctypes.c_void_p)
        start = ctypes.addressof(self._live)
        for event in events:
            if event < num:
                self._free(self._live[event])
                continue
            row = event - num
            if self._memalign(start + row * width, ALIGNMENT_BYTES, self._sizes[row]) != 0:
                return row
            reserved = self._reserved() - self._before
            self.reserved_peak_bytes = max(self.reserved_peak_bytes, reserved)
        return None


if __name__ == "__main__":
    main()
