"""Who decides what is kept, swapped or recomputed: our planner, the paper, or a fixed rule."""

from __future__ import annotations

from enum import Enum

from memo_planner.errors import InvalidInput
from memo_planner.policy import BlockPolicy, Place, Policy
from memo_planner.workload import Way

EIGHTHS = 8
"""The paper's alpha comes in eighths."""
LAST_KEPT = 2
"""Blocks whose saved tensors wait in the two rounding buffers. Source: MEMO §alpha."""


class Strategy(Enum):
    """A way to decide a step's policy; all of them are costed by the same model."""

    TILES = "tiles"
    MEMO_PAPER = "memo-paper"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_OFFLOAD = "checkpoint-offload"
    SWAP_ALL = "swap-all"
    NONE = "none"

    @property
    def way(self) -> Way:
        """How its blocks are run."""
        if self is Strategy.TILES:
            return Way.TILED
        checkpointed = self in (Strategy.CHECKPOINT, Strategy.CHECKPOINT_OFFLOAD)
        return Way.CHECKPOINTED if checkpointed else Way.WHOLE

    @property
    def description(self) -> str:
        """What it does, in a line."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Strategy.TILES: "token tiles kept, swapped or recomputed, each block's own mix, by MIP",
    Strategy.MEMO_PAPER: "x, o and alpha of the rest swapped through two whole-block buffers, "
    "one alpha in eighths, the last two blocks kept",
    Strategy.CHECKPOINT: "x kept; each block runs again in backward, attention included",
    Strategy.CHECKPOINT_OFFLOAD: "x swapped; each block runs again in backward, attention included",
    Strategy.SWAP_ALL: "all saved tensors swapped through two whole-block buffers, the last two "
    "blocks kept",
    Strategy.NONE: "all saved tensors kept",
}


def strategy_named(name: str) -> Strategy:
    """The strategy of that name. Raises: InvalidInput, naming those there are."""
    for each in Strategy:
        if each.value == name:
            return each
    names = ", ".join(each.value for each in Strategy)
    raise InvalidInput(f"strategy {name!r} is not known; known: {names}")


def fixed_policies(strategy: Strategy, tokens: int, num_blocks: int) -> list[Policy]:
    """The policies that a fixed strategy chooses from: one, or one for each of nine alphas."""
    assert strategy is not Strategy.TILES, "tiles are planned, not fixed"
    if strategy is Strategy.MEMO_PAPER:
        tile_tokens = -(-tokens // EIGHTHS)
        num_tiles = -(-tokens // tile_tokens)
        return [
            _swapped(tokens, tile_tokens, swap, num_blocks) for swap in range(num_tiles, -1, -1)
        ]
    if strategy is Strategy.SWAP_ALL:
        return [_swapped(tokens, tokens, 1, num_blocks)]
    if strategy is Strategy.NONE:
        block = _block(keep=1)
    else:
        x = Place.KEEP if strategy is Strategy.CHECKPOINT else Place.SWAP
        block = _block(recompute=1, x=x, o=Place.RECOMPUTE)
    return [Policy(tokens=tokens, tile_tokens=tokens, blocks=(block,) * num_blocks)]


def _swapped(tokens: int, tile_tokens: int, swap: int, num_blocks: int) -> Policy:
    """`swap` tiles of each block swapped and the rest recomputed, x and o swapped.

    The last two blocks are kept: that is what the rounding buffers hold when forward ends, and no
    point of the step needs more of them.
    """
    num_tiles = -(-tokens // tile_tokens)
    moved = _block(swap=swap, recompute=num_tiles - swap, x=Place.SWAP, o=Place.SWAP)
    kept = min(LAST_KEPT, num_blocks)
    blocks = (moved,) * (num_blocks - kept) + (_block(keep=num_tiles),) * kept
    return Policy(tokens=tokens, tile_tokens=tile_tokens, blocks=blocks)


def _block(
    *,
    keep: int = 0,
    swap: int = 0,
    recompute: int = 0,
    x: Place = Place.KEEP,
    o: Place = Place.KEEP,
) -> BlockPolicy:
    return BlockPolicy(keep_tiles=keep, swap_tiles=swap, recompute_tiles=recompute, x=x, o=o)
