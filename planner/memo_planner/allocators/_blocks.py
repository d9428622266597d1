"""Parts of PyTorch's CUDA caching allocator, for its simulators: sizes, pools, blocks, counters.

A block lies between its neighbours of one segment; the free ones are found by size.

Source: the constants of c10/core/AllocatorConfig.h in torch 2.13 (`kMinBlockSize`, `kSmallSize`,
    `kSmallBuffer`, `kMinLargeAlloc`, `kRoundLarge`, `large_segment_size`), and the comments at the
    head of c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(kw_only=True)
class Tally:
    """Bytes now and at their highest; counts of what happened. Names as in `AllocatorRun`."""

    allocated_bytes: int = 0
    allocated_peak_bytes: int = 0
    reserved_bytes: int = 0
    reserved_peak_bytes: int = 0
    inactive_split_bytes: int = 0
    inactive_split_peak_bytes: int = 0
    segments: int = 0
    num_segments: int = 0
    num_device_allocs: int = 0
    num_device_frees: int = 0
    num_retries: int = 0

    def allocate(self, num_bytes: int) -> None:
        """So many bytes are handed out; fewer than 0 come back."""
        self.allocated_bytes += num_bytes
        if self.allocated_bytes > self.allocated_peak_bytes:
            self.allocated_peak_bytes = self.allocated_bytes

    def reserve(self, num_bytes: int) -> None:
        """So many bytes are taken from the device; fewer than 0 go back."""
        self.reserved_bytes += num_bytes
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)
        if num_bytes > 0:
            self.num_device_allocs += 1
        else:
            self.num_device_frees += 1

    def segment(self, change: int) -> None:
        """A segment more or one less."""
        self.segments += change
        self.num_segments = max(self.num_segments, self.segments)

    def inactive_split(self, num_bytes: int) -> None:
        """Free bytes in split segments grow by so many."""
        self.inactive_split_bytes += num_bytes
        if self.inactive_split_bytes > self.inactive_split_peak_bytes:
            self.inactive_split_peak_bytes = self.inactive_split_bytes


class Block:
    """A range of addresses that is handed out whole, or free.

    Attributes:
        address, size_bytes: where it begins, how long it is.
        below, above: neighbours in its segment; None at the segment's ends.
        is_free: not handed out. is_mapped: backed by memory; false in expandable segments only.
        is_small: belongs to the pool of small requests.
    """

    # A step has hundreds of thousands of them.
    __slots__ = ("above", "address", "below", "is_free", "is_mapped", "is_small", "size_bytes")

    def __init__(self, address: int, size_bytes: int, *, is_small: bool) -> None:
        self.address = address
        self.size_bytes = size_bytes
        self.below: Block | None = None
        self.above: Block | None = None
        self.is_free = True
        self.is_mapped = True
        self.is_small = is_small

    @property
    def is_split(self) -> bool:
        """Whether its segment holds other blocks as well."""
        return self.below is not None or self.above is not None

    def cut(self, size_bytes: int) -> Block:
        """Keep the lowest `size_bytes`; the rest, as a free block above."""
        assert 0 < size_bytes < self.size_bytes, (size_bytes, self.size_bytes)
        rest = Block(
            self.address + size_bytes, self.size_bytes - size_bytes, is_small=self.is_small
        )
        rest.is_mapped = self.is_mapped
        rest.below, rest.above = self, self.above
        if rest.above is not None:
            rest.above.below = rest
        self.above = rest
        self.size_bytes = size_bytes
        return rest

    def absorb(self, other: Block) -> None:
        """Grow over a neighbour, which is a block no longer."""
        if other is self.below:
            self.address = other.address
            self.below = other.below
            if self.below is not None:
                self.below.above = self
        else:
            assert other is self.above, "only a neighbour can be absorbed"
            self.above = other.above
            if self.above is not None:
                self.above.below = self
        self.size_bytes += other.size_bytes


class FreeBlocks:
    """Free blocks in order of size, then address. A block must not change while it is in here."""

    def __init__(self) -> None:
        self._keys: list[tuple[int, int]] = []
        self._blocks: dict[int, Block] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Block]:
        return self.at_least(0)

    def at_least(self, size_bytes: int) -> Iterator[Block]:
        """Blocks of `size_bytes` and more, the best fit first."""
        at = bisect_left(self._keys, (size_bytes, -1))
        while at < len(self._keys):
            yield self._blocks[self._keys[at][1]]
            at += 1

    def best(self, size_bytes: int) -> Block | None:
        """The smallest block that holds `size_bytes`, of equal ones the lowest."""
        at = bisect_left(self._keys, (size_bytes, -1))
        return self._blocks[self._keys[at][1]] if at < len(self._keys) else None

    def add(self, block: Block) -> None:
        """Put a block in."""
        insort(self._keys, (block.size_bytes, block.address))
        self._blocks[block.address] = block

    def remove(self, block: Block) -> None:
        """Take a block out."""
        at = bisect_left(self._keys, (block.size_bytes, block.address))
        del self._keys[at]
        del self._blocks[block.address]


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
