"""Sizes and pools of PyTorch's CUDA caching allocator, with and without expandable segments.

Source: the constants of c10/core/AllocatorConfig.h in torch 2.13 (`kMinBlockSize`, `kSmallSize`,
    `kSmallBuffer`, `kMinLargeAlloc`, `kRoundLarge`, `large_segment_size`), and the comments at the
    head of c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from memo_planner.allocators.block import Block, FreeBlocks
from memo_planner.allocators.tally import Tally
from memo_planner.checks import check_int

MIB = 2**20
ROUNDING_BYTES = 512
SMALL_BYTES = MIB
"""The largest request, rounded, of the small pool."""

SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
OWN_SEGMENT_BYTES = 10 * MIB
"""The smallest request that gets a segment of its own size, rounded up to `SEGMENT_ROUNDING`."""

SEGMENT_ROUNDING_BYTES = 2 * MIB


def rounded(size_bytes: int, multiple_bytes: int = ROUNDING_BYTES) -> int:
    """The least multiple that holds `size_bytes`; `size_bytes` must be 1 or more."""
    check_int("a request's size", size_bytes, 1)
    return -(-size_bytes // multiple_bytes) * multiple_bytes


def segment_bytes(size_bytes: int) -> int:
    """How much is taken from the device for a rounded request that no free block holds."""
    if size_bytes <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size_bytes < OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT_BYTES
    return rounded(size_bytes, SEGMENT_ROUNDING_BYTES)


class Pools:
    """Free blocks of the small and the large pool; blocks are cut and merged, and counted."""

    def __init__(self, tally: Tally, *, count_split: bool = True) -> None:
        """count_split: whether free bytes in split segments are counted."""
        self.small, self.large = FreeBlocks(), FreeBlocks()
        self._tally = tally
        self._count_split = count_split

    def of(self, size_bytes: int) -> FreeBlocks:
        """The pool of a rounded request."""
        return self.small if size_bytes <= SMALL_BYTES else self.large

    def holding(self, block: Block) -> FreeBlocks:
        """The pool to which a block belongs."""
        return self.small if block.is_small else self.large

    def hand_out(self, block: Block, size_bytes: int, *, cut: bool) -> None:
        """Make a free block that is in no pool a live one; `cut` off what it has too much."""
        self._count(block, -1)
        block.is_free = False
        if cut:
            rest = block.cut(size_bytes)
            self.holding(rest).add(rest)
            self._count(rest, 1)
        self._tally.allocate(block.size_bytes)

    def take_back(self, block: Block) -> None:
        """Make a live block free, in one with its free neighbours."""
        assert not block.is_free, f"the block at {block.address:,} is freed twice"
        self._tally.allocate(-block.size_bytes)
        block.is_free = True
        self.merge(block)
        self.holding(block).add(block)
        self._count(block, 1)

    def merge(self, block: Block) -> None:
        """Grow a free block, which is in no pool, over free neighbours of its kind."""
        pool = self.holding(block)
        for other in (block.below, block.above):
            if other is not None and other.is_free and other.is_mapped:
                pool.remove(other)
                self._count(other, -1)
                block.absorb(other)

    def _count(self, block: Block, sign: int) -> None:
        if self._count_split and block.is_split:
            self._tally.inactive_split(sign * block.size_bytes)
