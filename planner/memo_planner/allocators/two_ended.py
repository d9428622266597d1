"""First fit from both ends of one range, as memo-train's own CPU arena serves what is not planned.

Under a cap, requests of 1/32 of it and more are placed from the top down, smaller ones from the
bottom up, each rounded to 64 bytes and in the first hole that holds it. The range is as large as
the cap whatever is in it, so what counts is the least cap under which a step runs.

Source: csrc/memory/arena.h.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from memo_planner.allocators.block import Block
from memo_planner.allocators.replay import Replay, replay
from memo_planner.allocators.run import SimulatedOutOfMemory
from memo_planner.allocators.tally import Tally
from memo_planner.checks import check_int
from memo_planner.sizes import format_bytes
from memo_planner.trace.requests import Requests

ALIGNMENT_BYTES = 64
_LARGE_SHARE = 32
_PRECISION = 1.005
_FIRST_GUESS = 1.25


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
