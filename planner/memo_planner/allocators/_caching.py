"""PyTorch's CUDA caching allocator as rules, simulated on one stream, with both kinds of segments.

A request is rounded up to 512 bytes. Up to 1 MiB it belongs to the small pool, above to the large
one.

**Segments of fixed size.** The pool's smallest free block that holds a request serves it, of equal
ones the lowest. Where there is none, the device gives a segment (`segment_bytes`). What a block has
too much is cut off if it is 512 bytes or more in the small pool, over 1 MiB in the large one. A
freed block becomes one with its free neighbours of the same segment, and stays cached.

Where a segment does not fit the cap: with `max_split_bytes`, just enough of the large free blocks
that may not be cut are given back first. Then every free block that is a whole segment is given
back, which counts as a retry. If it still does not fit, memory is out.

**Expandable segments** (`expandable_segments:True`). Each pool has one segment, a range of
addresses that has memory only where pages are mapped: 2 MiB each in the small pool, 20 MiB in the
large one. A request takes the best fit among free mapped blocks; a free block with unmapped
addresses above counts with those, so the segment's end is used last. Where no block holds it, pages
are mapped from the lowest unmapped address on, together with a free block just below it. Everything
over 512 bytes is cut off.

Where a page does not fit the cap, all whole pages in free blocks are unmapped, which counts as a
retry; if that is not enough, memory is out. The cap is taken as the device's memory, page by page.
Simplified: a segment's addresses never run out, so there is one a pool (PyTorch reserves 1 1/8 of
the device's memory for each). Free bytes in split segments are not counted, as PyTorch does not:
whole pages can always be given back.

Not simulated: several streams, pools of CUDA graphs, `garbage_collection_threshold`,
`roundup_power2_divisions`. With one stream, active and allocated bytes are the same.

Source: the comments at the head of c10/cuda/CUDACachingAllocator.cpp and its note "Expandable
    Segments"; "Memory management" and "Optimizing memory usage with PYTORCH_ALLOC_CONF" in
    PyTorch's notes on CUDA semantics (pytorch.org/docs/stable/notes/cuda.html).
"""

from __future__ import annotations

from memo_planner.allocators._blocks import (
    LARGE_SEGMENT_BYTES,
    ROUNDING_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    Block,
    FreeBlocks,
    Pools,
    Tally,
    rounded,
    segment_bytes,
)
from memo_planner.allocators._replay import SimulatedOutOfMemory
from memo_planner.checks import LARGEST, check_int
from memo_planner.errors import format_bytes

_SEGMENT_ADDRESSES = LARGEST // LARGE_SEGMENT_BYTES * LARGE_SEGMENT_BYTES
"""Whole pages of either pool, and more than any trace can ask for."""


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
        # A block that may not be cut wastes its rest: PyTorch lets that be less than 20 MiB.
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
        # From the largest, so that as few as possible go.
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
            # As PyTorch walks: on, by size, for as long as the next one could hold less.
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
        # In its pool, as mapping takes the free neighbours of what it maps out of there.
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
        # A copy, as the pool changes on the way.
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
