"""Where every saved tensor of a step goes: the decision, without its costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from memo_planner.checks import check_int
from memo_planner.errors import InvalidInput

MAX_TOKENS = 2**40
"""Longest sequence the planner takes on."""


MAX_GROUPS = 2**16
"""Most groups of heads: no model has as many heads."""


class Place(Enum):
    """Where a whole block's x or o waits for its backward.

    RECOMPUTE is for o alone: attention runs again in backward, as checkpointing systems do.
    """

    KEEP = "keep"
    SWAP = "swap"
    RECOMPUTE = "recompute"


class TilePlace(Enum):
    """What happens to one tile's saved tensors between forward and backward."""

    SWAP = "swap"
    RECOMPUTE = "recompute"
    KEEP = "keep"


@dataclass(frozen=True, kw_only=True)
class BlockPolicy:
    """One block: how many of its tiles go which way, and where x and o go.

    In token order the swapped tiles come first, then the recomputed, then the kept: their copies
    start early in forward, and a backward that runs from the last tile meets the kept ones first.
    """

    keep_tiles: int
    swap_tiles: int
    recompute_tiles: int
    x: Place
    o: Place

    def __post_init__(self) -> None:
        for name in ("keep_tiles", "swap_tiles", "recompute_tiles"):
            check_int(f"BlockPolicy.{name}", getattr(self, name), 0, MAX_TOKENS)
        for name in ("x", "o"):
            if not isinstance(getattr(self, name), Place):
                raise InvalidInput(f"BlockPolicy.{name} is {getattr(self, name)!r}, not a Place")
        if self.x is Place.RECOMPUTE:
            raise InvalidInput("BlockPolicy.x is recompute; a block's input is kept or swapped")

    @property
    def num_tiles(self) -> int:
        """Tiles of the block."""
        return self.keep_tiles + self.swap_tiles + self.recompute_tiles

    @property
    def swaps(self) -> bool:
        """Whether anything of the block goes to the host."""
        return self.swap_tiles > 0 or Place.SWAP in (self.x, self.o)

    def kept_tokens(self, tokens: int, tile_tokens: int) -> int:
        """Of a sequence of `tokens`, those in kept tiles; only the last tile is shorter."""
        return max(tokens - (self.swap_tiles + self.recompute_tiles) * tile_tokens, 0)

    def tile_place(self, tile: int) -> TilePlace:
        """What happens to tile number `tile`, from the first token on. Raises: InvalidInput."""
        check_int("tile", tile, 0, self.num_tiles - 1)
        if tile < self.swap_tiles:
            return TilePlace.SWAP
        if tile < self.swap_tiles + self.recompute_tiles:
            return TilePlace.RECOMPUTE
        return TilePlace.KEEP


@dataclass(frozen=True, kw_only=True)
class Policy:
    """All blocks of a step over `tokens` tokens in tiles of `tile_tokens` (the last may be short).

    num_groups: of heads, which attention runs one after the other while all else of q, k, v, o and
    their gradients waits on the host; 1 runs attention whole. A block whose heads meet runs whole.

    Raises: InvalidInput if a block's tiles do not add up to `num_tiles`.
    """

    tokens: int
    tile_tokens: int
    blocks: tuple[BlockPolicy, ...]
    num_groups: int = 1

    def __post_init__(self) -> None:
        check_int("Policy.tokens", self.tokens, 1, MAX_TOKENS)
        check_int("Policy.num_groups", self.num_groups, 1, MAX_GROUPS)
        check_int("Policy.tile_tokens", self.tile_tokens, 1, self.tokens)
        if not self.blocks:
            raise InvalidInput("Policy.blocks is empty; a policy needs at least one block")
        for index, block in enumerate(self.blocks):
            if block.num_tiles != self.num_tiles:
                raise InvalidInput(
                    f"Policy.blocks[{index}] has {block.num_tiles} tiles; "
                    f"{self.tokens} tokens in tiles of {self.tile_tokens} make {self.num_tiles}"
                )

    @property
    def num_tiles(self) -> int:
        """Tiles of one block."""
        return math.ceil(self.tokens / self.tile_tokens)

    def shorter(self, tokens: int) -> Policy:
        """The policy for a shorter sequence, in tiles of the same size.

        Each block keeps and sends no more tokens than before: recomputed tiles go first, then
        swapped, then kept ones. Raises: InvalidInput if `tokens` is above its own.
        """
        check_int("tokens", tokens, 1, self.tokens)
        blocks = tuple(self._shorter_block(block, tokens) for block in self.blocks)
        tile_tokens = min(self.tile_tokens, tokens)
        return replace(self, tokens=tokens, tile_tokens=tile_tokens, blocks=blocks)

    def _shorter_block(self, block: BlockPolicy, tokens: int) -> BlockPolicy:
        tile_tokens = min(self.tile_tokens, tokens)
        num_tiles = math.ceil(tokens / tile_tokens)
        others = (block.swap_tiles + block.recompute_tiles) * self.tile_tokens
        # The last tile may be short, so others in whole tiles may be more than all tokens.
        kept_tokens = max(self.tokens - others, 0)
        # The last tile is kept first, and here it may be longer than it was.
        last_tokens = tokens - (num_tiles - 1) * tile_tokens
        keep = min(max(1 + (kept_tokens - last_tokens) // tile_tokens, 0), num_tiles)
        swap = min(block.swap_tiles, num_tiles - keep)
        return replace(
            block, keep_tiles=keep, swap_tiles=swap, recompute_tiles=num_tiles - keep - swap
        )

    @property
    def alpha(self) -> float:
        """Swapped tiles over tiles, all blocks taken together. Source: MEMO §alpha."""
        swapped = sum(block.swap_tiles for block in self.blocks)
        return swapped / (self.num_tiles * len(self.blocks))
