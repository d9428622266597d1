"""PyTorch's CUDA caching allocator with `expandable_segments:True` as rules, on one stream.

Each pool has one segment, a range of addresses that has memory only where pages are mapped: 2 MiB
each in the small pool, 20 MiB in the large one. A request, rounded up to 512 bytes, takes the best
fit among free mapped blocks; a free block with unmapped addresses above counts with those, so the
segment's end is used last. Where no block holds it, pages are mapped from the lowest unmapped
address on, together with a free block just below it. Everything over 512 bytes is cut off.

Where a page does not fit the cap, all whole pages in free blocks are unmapped, which counts as a
retry; if that is not enough, memory is out. The cap is taken as the device's memory, page by page.

Simplified: a segment's addresses never run out, so there is one a pool (PyTorch reserves 1 1/8 of
the device's memory for each). Not simulated: what `caching` does not. Free bytes in split segments
are not counted, as PyTorch does not: whole pages can always be given back.

Source: the note "Expandable Segments" in c10/cuda/CUDACachingAllocator.cpp; "Optimizing memory
    usage with PYTORCH_ALLOC_CONF" in PyTorch's notes on CUDA semantics.
"""

from __future__ import annotations

from memo_planner.allocators.block import Block, FreeBlocks
from memo_planner.allocators.pools import (
    LARGE_SEGMENT_BYTES,
    ROUNDING_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    Pools,
    rounded,
)
from memo_planner.allocators.run import SimulatedOutOfMemory
from memo_planner.allocators.tally import Tally
from memo_planner.checks import LARGEST, check_int
from memo_planner.sizes import format_bytes

_SEGMENT_ADDRESSES = LARGEST // LARGE_SEGMENT_BYTES * LARGE_SEGMENT_BYTES
"""Whole pages of either pool, and more than any trace can ask for."""


class ExpandableAllocator:
    """One growing segment a pool: the small pool's begins at 0, the large one's far above."""

    def __init__(self, *, cap_bytes: int | None = None) -> None:
        """cap_bytes: of the device; None for no limit. Raises: InvalidInput."""
        if cap_bytes is not None:
            check_int("cap_bytes", cap_bytes, 1)
        self.tally = Tally()
        self._pools = Pools(self.tally, count_split=False)
        self._cap_bytes = cap_bytes
        self._unmapped: dict[bool, list[Block]] = {}

    def alloc(self, size_bytes: int) -> Block:
        """A live block for a request. Raises: SimulatedOutOfMemory."""
        size_bytes = rounded(size_bytes)
        block = self._mapped(size_bytes) or self._expand(size_bytes)
        if block is None:
            self.tally.num_retries += 1
            self._unmap_free(self._pools.large)
            self._unmap_free(self._pools.small)
            block = self._expand(size_bytes)
        if block is None:
            raise SimulatedOutOfMemory(
                f"expandable segments: a request of {format_bytes(size_bytes)} does not fit the "
                f"cap of {format_bytes(self._cap_bytes or 0)} beside "
                f"{format_bytes(self.tally.allocated_bytes)} in use; raise the cap"
            )
        self._pools.hand_out(block, size_bytes, cut=block.size_bytes - size_bytes >= ROUNDING_BYTES)
        return block

    def free(self, block: Block) -> None:
        """Cache what `alloc` gave."""
        self._pools.take_back(block)

    def _mapped(self, size_bytes: int) -> Block | None:
        """The best fit, taken out of its pool."""
        pool = self._pools.of(size_bytes)
        chosen: Block | None = None
        for block in pool.at_least(size_bytes):
            if chosen is not None and _could_hold(block) >= _could_hold(chosen):
                break
            chosen = block
        if chosen is not None:
            pool.remove(chosen)
        return chosen

    def _expand(self, size_bytes: int) -> Block | None:
        """A free block at the lowest addresses that can be mapped; None over the cap."""
        lowest = self._lowest(size_bytes)
        if not lowest.is_mapped:
            found = self._map(lowest, min(size_bytes, lowest.size_bytes))
        else:
            found = lowest
            self._pools.of(size_bytes).remove(found)
        while found is not None and found.size_bytes < size_bytes:
            assert found.above is not None, "a segment ends in unmapped addresses"
            found = self._grow(found, size_bytes)
        return found

    def _grow(self, block: Block, size_bytes: int) -> Block | None:
        """Map what `block`, which is in no pool, lacks to `size_bytes`, just above it."""
        above = block.above
        assert above is not None, "a segment ends in unmapped addresses"
        assert not above.is_mapped, "a free block's free neighbours are part of it"
        self._pools.holding(block).add(block)
        return self._map(above, min(size_bytes - block.size_bytes, above.size_bytes))

    def _map(self, block: Block, size_bytes: int) -> Block | None:
        """Back the lowest `size_bytes` of an unmapped block, in whole pages.

        The mapped block with its free neighbours, in no pool; None, and nothing done, over the cap.
        """
        mapped_bytes = rounded(size_bytes, _page_bytes(block))
        if (
            self._cap_bytes is not None
            and self.tally.reserved_bytes + mapped_bytes > self._cap_bytes
        ):
            return None
        self._unmapped[block.is_small].remove(block)
        if mapped_bytes < block.size_bytes:
            self._add_unmapped(block.cut(mapped_bytes))
        block.is_mapped = True
        self.tally.reserve(mapped_bytes)
        self._pools.merge(block)
        return block

    def _lowest(self, size_bytes: int) -> Block:
        """Where to expand: the lowest unmapped block, or the free one below, with room above."""
        is_small = size_bytes <= SMALL_BYTES
        if is_small not in self._unmapped:
            start = 0 if is_small else _SEGMENT_ADDRESSES
            segment = Block(start, _SEGMENT_ADDRESSES, is_small=is_small)
            segment.is_mapped = False
            self._unmapped[is_small] = [segment]
            self.tally.segment(1)
        for block in self._unmapped[is_small]:
            below = block.below
            first = below if below is not None and below.is_free else block
            if _has_room(first, size_bytes):
                return first
        raise AssertionError(f"a segment's addresses ran out at a request of {size_bytes:,} bytes")

    def _unmap_free(self, pool: FreeBlocks) -> None:
        for block in list(pool):
            page = _page_bytes(block)
            begin = -(-block.address // page) * page
            end = (block.address + block.size_bytes) // page * page
            if begin < end:
                pool.remove(block)
                self._unmap(block, begin, end)

    def _unmap(self, block: Block, begin: int, end: int) -> None:
        """Take the memory of [begin, end), whole pages, from a free block that is in no pool."""
        pool = self._pools.holding(block)
        if begin > block.address:
            pages = block.cut(begin - block.address)
            pool.add(block)
            block = pages
        if end < block.address + block.size_bytes:
            pool.add(block.cut(end - block.address))
        self.tally.reserve(-block.size_bytes)
        block.is_mapped = False
        unmapped = self._unmapped[block.is_small]
        for other in (block.below, block.above):
            if other is not None and not other.is_mapped:
                unmapped.remove(other)
                block.absorb(other)
        self._add_unmapped(block)

    def _add_unmapped(self, block: Block) -> None:
        unmapped = self._unmapped[block.is_small]
        unmapped.append(block)
        unmapped.sort(key=lambda each: each.address)


def _page_bytes(block: Block) -> int:
    return SMALL_SEGMENT_BYTES if block.is_small else LARGE_SEGMENT_BYTES


def _could_hold(block: Block) -> int:
    """A free block's size with the unmapped addresses just above it."""
    above = block.above
    unmapped = above.size_bytes if above is not None and not above.is_mapped else 0
    return block.size_bytes + unmapped


def _has_room(first: Block, size_bytes: int) -> bool:
    """Whether `first` and what is free or unmapped right above it hold `size_bytes`."""
    room, block = 0, first
    while room < size_bytes and block.is_free:
        room += block.size_bytes
        if block.above is None:
            break
        block = block.above
    return room >= size_bytes
