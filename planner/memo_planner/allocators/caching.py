"""PyTorch's CUDA caching allocator as rules, simulated on one stream.

A request is rounded up to 512 bytes. Up to 1 MiB it belongs to the small pool, above to the large
one. The pool's smallest free block that holds it serves it, of equal ones the lowest. Where there
is none, the device gives a segment (`pools.segment_bytes`). What a block has too much is cut off if
it is 512 bytes or more in the small pool, over 1 MiB in the large one. A freed block becomes one
with its free neighbours of the same segment, and stays cached.

Where a segment does not fit the cap: with `max_split_bytes`, just enough of the large free blocks
that may not be cut are given back first. Then every free block that is a whole segment is given
back, which counts as a retry. If it still does not fit, memory is out.

Not simulated: several streams, pools of CUDA graphs, `garbage_collection_threshold`,
`roundup_power2_divisions`. With one stream, active and allocated bytes are the same.

Source: the comments at the head of c10/cuda/CUDACachingAllocator.cpp; "Memory management" in
    PyTorch's notes on CUDA semantics (pytorch.org/docs/stable/notes/cuda.html).
"""

from __future__ import annotations

from memo_planner.allocators.block import Block, FreeBlocks
from memo_planner.allocators.pools import (
    LARGE_SEGMENT_BYTES,
    ROUNDING_BYTES,
    SMALL_BYTES,
    Pools,
    rounded,
    segment_bytes,
)
from memo_planner.allocators.run import SimulatedOutOfMemory
from memo_planner.allocators.tally import Tally
from memo_planner.checks import check_int
from memo_planner.sizes import format_bytes


class CachingAllocator:
    """Segments of their own sizes. `tally` counts; addresses of segments are never used twice."""

    def __init__(self, *, cap_bytes: int | None = None, max_split_bytes: int | None = None) -> None:
        """cap_bytes: of the device; None for no limit.

        max_split_bytes: blocks of that size and more are never cut, as `max_split_size_mb` has it;
            None for no limit.
        Raises: InvalidInput if `max_split_bytes` is not above a large segment's 20 MiB.
        """
        if cap_bytes is not None:
            check_int("cap_bytes", cap_bytes, 1)
        if max_split_bytes is not None:
            check_int("max_split_bytes", max_split_bytes, LARGE_SEGMENT_BYTES + 1)
        self.tally = Tally()
        self._pools = Pools(self.tally)
        self._cap_bytes = cap_bytes
        self._max_split_bytes = max_split_bytes
        self._next_address = 0

    def alloc(self, size_bytes: int) -> Block:
        """A live block for a request. Raises: SimulatedOutOfMemory."""
        size_bytes = rounded(size_bytes)
        block = self._cached(size_bytes)
        if block is None:
            block = self._segment_for(size_bytes)
        else:
            self._pools.of(size_bytes).remove(block)
        self._pools.hand_out(block, size_bytes, cut=self._is_cut(block, size_bytes))
        return block

    def free(self, block: Block) -> None:
        """Cache what `alloc` gave."""
        self._pools.take_back(block)

    def _cached(self, size_bytes: int) -> Block | None:
        best = self._pools.of(size_bytes).best(size_bytes)
        if best is None or self._max_split_bytes is None:
            return best
        if size_bytes < self._max_split_bytes:
            return None if best.size_bytes >= self._max_split_bytes else best
        return best if best.size_bytes < size_bytes + LARGE_SEGMENT_BYTES else None

    def _is_cut(self, block: Block, size_bytes: int) -> bool:
        rest_bytes = block.size_bytes - size_bytes
        if block.is_small:
            return rest_bytes >= ROUNDING_BYTES
        may_cut = self._max_split_bytes is None or size_bytes < self._max_split_bytes
        return may_cut and rest_bytes > SMALL_BYTES

    def _segment_for(self, size_bytes: int) -> Block:
        need_bytes = segment_bytes(size_bytes)
        fits = self._fits(need_bytes)
        if not fits and not (self._release_enough(size_bytes) and self._fits(need_bytes)):
            self.tally.num_retries += 1
            self._release_segments(self._pools.large)
            self._release_segments(self._pools.small)
        if not self._fits(need_bytes):
            raise SimulatedOutOfMemory(
                f"caching allocator: a segment of {format_bytes(need_bytes)} does not fit the "
                f"cap of {format_bytes(self._cap_bytes or 0)} beside the "
                f"{format_bytes(self.tally.reserved_bytes)} that stay; raise the cap"
            )
        block = Block(self._next_address, need_bytes, is_small=size_bytes <= SMALL_BYTES)
        self._next_address += need_bytes
        self.tally.reserve(need_bytes)
        self.tally.segment(1)
        return block

    def _fits(self, num_bytes: int) -> bool:
        cap = self._cap_bytes
        return cap is None or self.tally.reserved_bytes + num_bytes <= cap

    def _release_enough(self, size_bytes: int) -> bool:
        """Give back the best fit of the blocks that are never cut; if none fits, the largest.

        Whether that is as much as asked for, or as a block that is never cut.
        """
        if self._max_split_bytes is None:
            return False
        pool, need_bytes = self._pools.of(size_bytes), max(size_bytes, self._max_split_bytes)
        best = pool.best(need_bytes)
        if best is not None:
            self._release(pool, best)
            return True
        released = 0
        for block in reversed(list(pool.at_least(self._max_split_bytes))):
            released += block.size_bytes
            self._release(pool, block)
            if released >= need_bytes:
                return True
        return False

    def _release_segments(self, pool: FreeBlocks) -> None:
        for block in [block for block in pool if not block.is_split]:
            self._release(pool, block)

    def _release(self, pool: FreeBlocks, block: Block) -> None:
        assert not block.is_split, f"the block at {block.address:,} is part of a segment"
        pool.remove(block)
        self.tally.reserve(-block.size_bytes)
        self.tally.segment(-1)
