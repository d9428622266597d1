"""Blocks of addresses, each between its neighbours of one segment, and the free ones by size."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator


class Block:
    """A range of addresses that is handed out whole, or free.

    Attributes:
        address, size_bytes: where it begins, how long it is.
        below, above: neighbours in its segment; None at the segment's ends.
        is_free: not handed out. is_mapped: backed by memory; false in expandable segments only.
        is_small: belongs to the pool of small requests.
    """

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
