"""One range of addresses without pools or segments: best fit, first fit from both ends, as planned.

**Best fit.** A request, rounded up to the alignment, goes to the smallest hole that holds it, of
equal ones the lowest; what lies above everything handed out is the last hole and the largest. Freed
ranges become one with the holes beside them. What is reserved is the highest end of anything ever
handed out. Source: Knuth, The Art of Computer Programming, volume 1, section 2.5.

**First fit from both ends**, as memo-train's own CPU arena serves what is not planned. Under a cap,
requests of 1/32 of it and more are placed from the top down, smaller ones from the bottom up, each
rounded to 64 bytes and in the first hole that holds it. The range is as large as the cap whatever
is in it, so what counts is the least cap under which a step runs. Source: csrc/memory/arena.h.

**Planned.** Every request at its address of the step's layout.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

import numpy as np

from memo_planner.allocators._blocks import Block, FreeBlocks, Tally
from memo_planner.allocators._replay import AllocatorRun, Replay, SimulatedOutOfMemory, replay
from memo_planner.checks import LARGEST, check_int
from memo_planner.errors import format_bytes
from memo_planner.layout import Placement, faults, lay_out_step
from memo_planner.trace import Requests

ALIGNMENT_BYTES = 64
# As in csrc/memory/arena.cc, where it was measured.
_LARGE_SHARE = 32
_PRECISION = 1.005
# Recorded steps need 3 to 6 % more than their peak, so one guess mostly serves.
_FIRST_GUESS = 1.25


class BestFitAllocator:
    """One range from address 0 on."""

    def __init__(self, *, alignment_bytes: int = 512, cap_bytes: int | None = None) -> None:
        """cap_bytes: the highest end of a request; None for no limit. Raises: InvalidInput."""
        check_int("alignment_bytes", alignment_bytes, 1)
        self.tally = Tally()
        self._alignment_bytes = alignment_bytes
        self._holes = FreeBlocks()
        # More than all requests together may ask for.
        end = 2 * LARGEST if cap_bytes is None else cap_bytes // alignment_bytes * alignment_bytes
        if cap_bytes is not None:
            check_int("cap_bytes", cap_bytes, alignment_bytes)
        self._holes.add(Block(0, end, is_small=False))
        self.tally.segment(1)

    def alloc(self, size_bytes: int) -> Block:
        """A live block for a request. Raises: SimulatedOutOfMemory."""
        size = -(-size_bytes // self._alignment_bytes) * self._alignment_bytes
        block = self._holes.best(size)
        if block is None:
            raise SimulatedOutOfMemory(
                f"best fit: no hole holds {format_bytes(size)} beside "
                f"{format_bytes(self.tally.allocated_bytes)} in use; raise the cap"
            )
        self._holes.remove(block)
        if block.size_bytes > size:
            self._holes.add(block.cut(size))
        block.is_free = False
        self.tally.allocate(size)
        grown = block.address + size - self.tally.reserved_bytes
        if grown > 0:
            self.tally.reserve(grown)
        return block

    def free(self, block: Block) -> None:
        """Give back what `alloc` gave."""
        assert not block.is_free, f"the block at {block.address:,} is freed twice"
        self.tally.allocate(-block.size_bytes)
        block.is_free = True
        for other in (block.below, block.above):
            if other is not None and other.is_free:
                self._holes.remove(other)
                block.absorb(other)
        self._holes.add(block)


class TwoEndedAllocator:
    """One range of `cap_bytes`, all of which is reserved."""

    def __init__(self, *, cap_bytes: int) -> None:
        """Raises: InvalidInput if the cap does not hold even one request."""
        check_int("cap_bytes", cap_bytes, ALIGNMENT_BYTES)
        end = cap_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        self.tally = Tally()
        self.tally.segment(1)
        self.tally.reserve(end)
        self._large_bytes = max(ALIGNMENT_BYTES, end // _LARGE_SHARE)
        self._starts: list[int] = []
        self._holes: dict[int, Block] = {}
        self._add(Block(0, end, is_small=False))

    def alloc(self, size_bytes: int) -> Block:
        """A live block for a request. Raises: SimulatedOutOfMemory."""
        size_bytes = -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        is_large = size_bytes >= self._large_bytes
        block = self._first(reversed(self._starts) if is_large else self._starts, size_bytes)
        self._remove(block)
        if block.size_bytes > size_bytes and is_large:
            hole, block = block, block.cut(block.size_bytes - size_bytes)
            self._add(hole)
        elif block.size_bytes > size_bytes:
            self._add(block.cut(size_bytes))
        block.is_free = False
        self.tally.allocate(size_bytes)
        return block

    def free(self, block: Block) -> None:
        """Give back what `alloc` gave."""
        assert not block.is_free, f"the block at {block.address:,} is freed twice"
        self.tally.allocate(-block.size_bytes)
        block.is_free = True
        for other in (block.below, block.above):
            if other is not None and other.is_free:
                self._remove(other)
                block.absorb(other)
        self._add(block)

    def _first(self, starts: Iterable[int], size_bytes: int) -> Block:
        for start in starts:
            if self._holes[start].size_bytes >= size_bytes:
                return self._holes[start]
        raise SimulatedOutOfMemory(
            f"two-ended first fit: no hole holds {format_bytes(size_bytes)} beside "
            f"{format_bytes(self.tally.allocated_bytes)} in use under the cap of "
            f"{format_bytes(self.tally.reserved_bytes)}; raise the cap"
        )

    def _add(self, block: Block) -> None:
        insort(self._starts, block.address)
        self._holes[block.address] = block

    def _remove(self, block: Block) -> None:
        del self._starts[bisect_left(self._starts, block.address)]
        del self._holes[block.address]


def least_cap(requests: Requests, name: str) -> Replay:
    """The step under the least cap that serves it, to half a percent, found by halving.

    One step is as good as many: the range is empty after each.
    """
    low_bytes = max(ALIGNMENT_BYTES, requests.peak_bytes())
    found = _under(requests, name, low_bytes)
    if found.run.refused_id is None:
        return found
    high_bytes = low_bytes
    while found.run.refused_id is not None:
        low_bytes, high_bytes = high_bytes, int(high_bytes * _FIRST_GUESS) + ALIGNMENT_BYTES
        found = _under(requests, name, high_bytes)
    # Which requests are large hangs on the cap, so a larger cap may serve a step that a still
    # larger one does not: what is found is a cap that serves beside one that does not.
    while high_bytes - low_bytes > max(ALIGNMENT_BYTES, low_bytes * (_PRECISION - 1)):
        middle_bytes = (low_bytes + high_bytes) // 2
        tried = _under(requests, name, middle_bytes)
        if tried.run.refused_id is None:
            high_bytes, found = middle_bytes, tried
        else:
            low_bytes = middle_bytes
    return found


def _under(requests: Requests, name: str, cap_bytes: int) -> Replay:
    return replay(requests, TwoEndedAllocator(cap_bytes=cap_bytes), name)


def planned(
    requests: Requests,
    name: str,
    *,
    alignment_bytes: int = 512,
    cap_bytes: int | None = None,
    seconds: float = 10.0,
) -> Replay:
    """The layout as an allocator's run, checked by the independent validator.

    Reserved is the layout's peak, allocated the most bytes alive at once, both with every size
    rounded up to the alignment: fragmentation is 0 exactly where the layout is proved optimal.
    Under a cap, refused is the first request that ends above it.

    Raises: InvalidInput; SolverError.
    """
    placement = lay_out_step(requests, alignment_bytes=alignment_bytes, seconds=seconds)
    found = faults(placement)
    assert not found, f"the layout is invalid: {found[0]}"
    refused = None if cap_bytes is None else _first_above(placement, cap_bytes)
    run = AllocatorRun(
        allocator=name,
        requested_peak_bytes=requests.peak_bytes(),
        allocated_peak_bytes=placement.lower_bound_bytes,
        reserved_peak_bytes=placement.peak_bytes,
        refused_id=None if refused is None else int(requests.ids[refused]),
    )
    return Replay(run=run, addresses=placement.offset_bytes)


def _first_above(placement: Placement, cap_bytes: int) -> int | None:
    ends = placement.offset_bytes + placement.problem.padded_bytes
    above = np.flatnonzero(ends > cap_bytes)
    return int(above[0]) if len(above) else None
