"""glibc's malloc, measured: the requests are made for real in a process of their own.

Every request is a `posix_memalign` at 64 bytes and every free a `free`, as PyTorch's CPU allocator
makes them, on one thread, in a fresh process with glibc's defaults. After every request
`mallinfo2` is read: reserved is what the heap has from the system (`arena`) and what single
requests were mapped (`hblkhd`), above what the process had at its start. Nothing is written to the
memory, so a step of any size can be measured; a kernel that does not promise more than it has may
refuse requests near the size of its memory.

Allocated is the most bytes alive at once as requested: what glibc rounds and adds is its own.

Source: mallinfo(3), malloc(3); c10/core/impl/alloc_cpu.cpp.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from memo_planner.allocators._replay import AllocatorRun, event_order
from memo_planner.errors import MemoError
from memo_planner.trace import Requests

_CHILD = Path(__file__).with_name("heap_child.py")
_LONGEST_S = 600


class NotMeasured(MemoError):
    """This machine's C library has no `mallinfo2`: it is not glibc 2.33 or newer."""


def can_measure() -> bool:
    """Whether this machine's C library tells what it has reserved."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")


def measure_glibc(requests: Requests, name: str, *, num_steps: int = 1) -> AllocatorRun:
    """Serve the requests `num_steps` times by glibc, as `replay` does by a simulator.

    Raises: NotMeasured.
    """
    if not can_measure():
        raise NotMeasured("glibc: this machine's C library has no mallinfo2; needs glibc 2.33")
    head = np.array([len(requests), num_steps], np.int64)
    numbers = np.concatenate([head, requests.size_bytes, event_order(requests)])
    done = subprocess.run(
        # Isolated: nothing of the user's may allocate before the requests do.
        [sys.executable, "-I", str(_CHILD)],
        input=numbers.astype(np.int64).tobytes(),
        stdout=subprocess.PIPE,
        env=_defaults(),
        check=True,
        timeout=_LONGEST_S,
    )
    found = json.loads(done.stdout)
    refused = found["refused"]
    live = requests.live_bytes()
    if refused is not None:
        live = live[: int(requests.malloc_times[refused])]
    allocated = int(live.max(initial=0))
    return AllocatorRun(
        allocator=name,
        is_measured=True,
        requested_peak_bytes=requests.peak_bytes(),
        allocated_peak_bytes=allocated,
        # Free memory that the heap has at its start may serve the first requests.
        reserved_peak_bytes=max(int(found["reserved_peak_bytes"]), allocated),
        refused_id=None if refused is None else int(requests.ids[refused]),
    )


def _defaults() -> dict[str, str]:
    """The environment without what tunes malloc, or replaces it."""
    tuned = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    return {name: value for name, value in os.environ.items() if not name.startswith(tuned)}
