"""Best fit in one range of addresses: no pools, no segments, nothing planned.

A request, rounded up to the alignment, goes to the smallest hole that holds it, of equal ones the
lowest; what lies above everything handed out is the last hole and the largest. Freed ranges become
one with the holes beside them. What is reserved is the highest end of anything ever handed out.

Source: Knuth, The Art of Computer Programming, volume 1, section 2.5.
"""

from __future__ import annotations

from memo_planner.allocators.block import Block, FreeBlocks
from memo_planner.allocators.run import SimulatedOutOfMemory
from memo_planner.allocators.tally import Tally
from memo_planner.checks import LARGEST, check_int
from memo_planner.sizes import format_bytes


class BestFitAllocator:
    """One range from address 0 on."""

    def __init__(self, *, alignment_bytes: int = 512, cap_bytes: int | None = None) -> None:
        """cap_bytes: the highest end of a request; None for no limit. Raises: InvalidInput."""
        check_int("alignment_bytes", alignment_bytes, 1)
        self.tally = Tally()
        self._alignment_bytes = alignment_bytes
        self._holes = FreeBlocks()
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
