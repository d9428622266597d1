"""What a plan is asked for, the tile sizes to try, and whether any of them fits."""

from __future__ import annotations

from dataclasses import dataclass

from memo_planner.checks import check_int, check_number
from memo_planner.cost import BlockShape
from memo_planner.errors import InvalidInput
from memo_planner.feasible import Shortage, shortage
from memo_planner.limits import Limits
from memo_planner.policy import MAX_TOKENS
from memo_planner.profile import Profile

SMALLEST_TILE = 64
_ALPHA_SLACK = 1 / 16


@dataclass(frozen=True, kw_only=True)
class Request:
    """Profile, limits and the user's own choices. Raises: InvalidInput.

    `attention_again`: whether attention may run again where o fits nowhere.
    """

    profile: Profile
    limits: Limits
    alpha: float | None
    tile_tokens: int | None
    attention_again: bool = False

    def __post_init__(self) -> None:
        if self.alpha is not None and check_number("alpha", self.alpha) > 1:
            raise InvalidInput(f"alpha is {self.alpha}; it must be from 0 to 1")
        if self.tile_tokens is not None:
            check_int("tile_tokens", self.tile_tokens, 1, MAX_TOKENS)

    def shapes(self, tokens: int) -> list[BlockShape]:
        """Tile sizes to try, largest first: the whole sequence, then powers of two down to 64."""
        if self.tile_tokens is not None:
            return [self._shape(tokens, min(self.tile_tokens, tokens))]
        sizes, size = [tokens], SMALLEST_TILE
        while size < tokens:
            sizes.insert(1, size)
            size *= 2
        shapes = [self._shape(tokens, tile_tokens) for tile_tokens in sizes]
        return shapes if self.alpha is None else _close_to(self.alpha, shapes)

    def shortage(self, tokens: int) -> Shortage | None:
        """None if some tile size fits; else what is short where least is missing."""
        shapes = self.shapes(tokens)
        if self.alpha is None:
            shapes = shapes[-1:]
        found = [shortage(shape, self.limits, self.alpha) for shape in shapes]
        short = [item for item in found if item is not None]
        if len(short) < len(found):
            return None
        return min(short, key=lambda item: item.need_bytes / item.limit_bytes)

    def _shape(self, tokens: int, tile_tokens: int) -> BlockShape:
        return BlockShape(
            profile=self.profile,
            tokens=tokens,
            tile_tokens=tile_tokens,
            attention_again=self.attention_again,
        )


def _close_to(alpha: float, shapes: list[BlockShape]) -> list[BlockShape]:
    """Those shapes whose tiles can be split at `alpha` closely enough, or else the closest."""

    def miss(shape: BlockShape) -> float:
        return abs(round(alpha * shape.num_tiles) / shape.num_tiles - alpha)

    close = [shape for shape in shapes if miss(shape) <= _ALPHA_SLACK]
    return close or [min(shapes, key=miss)]
