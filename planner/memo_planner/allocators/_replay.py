"""Serves a recorded step's requests by an allocator, in the order in which they were made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from memo_planner.allocators._blocks import Block, Tally
from memo_planner.checks import check_int
from memo_planner.errors import InvalidInput, MemoError
from memo_planner.trace import Column, Requests


class SimulatedOutOfMemory(MemoError):
    """A simulated allocator refuses a request: it does not fit the device's cap."""


@dataclass(frozen=True, kw_only=True)
class AllocatorRun:
    """One allocator's memory for one step's requests.

    Attributes:
        allocator: its name. is_measured: run for real; false for a simulation by published rules.
        requested_peak_bytes: most bytes alive at once as requested, without any rounding.
        allocated_peak_bytes: most bytes handed out at once, each in the allocator's rounding.
        reserved_peak_bytes: most bytes taken from the device (or, of one range of addresses, the
            highest end of anything handed out).
        inactive_split_peak_bytes: most bytes at once in free blocks that share their segment with
            live ones and so cannot be given back; 0 where an allocator has no such notion.
        num_segments: most segments at once. num_device_allocs, num_device_frees: how often memory
            was taken from the device and given back. num_retries: how often the cache was emptied
            for a request that did not fit.
        refused_id: the request at which memory ran out, where the run ended; None if all fitted.

    Raises: InvalidInput if more is allocated than reserved, or a figure is below 0.
    """

    allocator: str
    is_measured: bool = False
    requested_peak_bytes: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int
    inactive_split_peak_bytes: int = 0
    num_segments: int = 1
    num_device_allocs: int = 1
    num_device_frees: int = 0
    num_retries: int = 0
    refused_id: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name.endswith("_bytes") or field.name.startswith("num_"):
                check_int(f"AllocatorRun.{field.name}", getattr(self, field.name), 0)
        if self.allocated_peak_bytes > self.reserved_peak_bytes:
            raise InvalidInput(
                f"{self.allocator} has {self.allocated_peak_bytes:,} bytes allocated of only "
                f"{self.reserved_peak_bytes:,} reserved"
            )

    @property
    def fragmentation(self) -> float:
        """Share of the reserved peak that a perfect allocator would not have needed.

        1 - allocated peak / reserved peak, each the most over the step; rounding is on both sides.
        0.0 for a step without requests.
        """
        if not self.reserved_peak_bytes:
            return 0.0
        return 1 - self.allocated_peak_bytes / self.reserved_peak_bytes


class Allocator(Protocol):
    """What serves requests; `tally` counts."""

    tally: Tally

    def alloc(self, size_bytes: int) -> Block:
        """A live block of `size_bytes` or more. Raises: SimulatedOutOfMemory."""

    def free(self, block: Block) -> None:
        """Take back what `alloc` gave."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """A run, and where its last step had every request.

    addresses: int64 [n], in the order of the requests; -1 for what was never served.
    """

    run: AllocatorRun
    addresses: Column


def replay(requests: Requests, allocator: Allocator, name: str, *, num_steps: int = 1) -> Replay:
    """Serve the requests `num_steps` times over, as a training loop does.

    What lived before the step is asked for first; what outlives it is freed at its end, so that the
    next step finds it as the first did. Ends early where memory runs out.

    Raises: InvalidInput.
    """
    check_int("num_steps", num_steps, 1, 1000)
    served = _Served(requests, allocator)
    refused_id: int | None = None
    for _ in range(num_steps):
        refused = served.step()
        if refused is not None:
            refused_id = int(requests.ids[refused])
            break
    tally = allocator.tally
    run = AllocatorRun(
        allocator=name,
        requested_peak_bytes=requests.peak_bytes(),
        allocated_peak_bytes=tally.allocated_peak_bytes,
        reserved_peak_bytes=tally.reserved_peak_bytes,
        inactive_split_peak_bytes=tally.inactive_split_peak_bytes,
        num_segments=tally.num_segments,
        num_device_allocs=tally.num_device_allocs,
        num_device_frees=tally.num_device_frees,
        num_retries=tally.num_retries,
        refused_id=refused_id,
    )
    return Replay(run=run, addresses=np.array(served.addresses, dtype=np.int64))


def event_order(requests: Requests) -> Column:
    """Events of a step in order: int64 [2 n]; k < n frees request k, k >= n asks for k - n.

    At one time frees come first: lifetimes are half-open.
    """
    times = np.concatenate([requests.free_times, requests.malloc_times])
    is_malloc = np.arange(2 * len(requests)) >= len(requests)
    return np.lexsort((is_malloc, times)).astype(np.int64)


class _Served:
    """Steps of one allocator and the blocks that live in them."""

    def __init__(self, requests: Requests, allocator: Allocator) -> None:
        self._allocator = allocator
        self._sizes = requests.size_bytes.tolist()
        self._events = event_order(requests).tolist()
        self.addresses = [-1] * len(requests)

    def step(self) -> int | None:
        """Serve all events; the request at which memory ran out, if it did."""
        # Looked up once: the loop runs for every event of a step.
        alloc, free = self._allocator.alloc, self._allocator.free
        num, sizes, addresses = len(self._sizes), self._sizes, self.addresses
        live: dict[int, Block] = {}
        event: int
        for event in self._events:
            if event < num:
                free(live.pop(event))
                continue
            try:
                block = alloc(sizes[event - num])
            except SimulatedOutOfMemory:
                return event - num
            live[event - num] = block
            addresses[event - num] = block.address
        return None
