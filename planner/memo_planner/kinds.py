"""The kinds of blocks of a model, measured to the byte: what each saves and what its stages need.

The profile's own figures are the highest of all kinds, with an allowance for holes: by them a plan
is accepted. These are the bytes alive, by which a plan's peak is told. "Token" as in the profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import cached_property

from memo_planner.checks import check_fields, check_int, check_number
from memo_planner.errors import InvalidInput
from memo_planner.policy import TilePlace

FORWARD_STAGES = ("pre", "attention", "post")
BACKWARD_STAGES = ("post_backward", "attention_backward", "pre_backward")
STAGES = (*FORWARD_STAGES, "loss", "between", *BACKWARD_STAGES)
"""Of a step; `between` is what lies outside of blocks and loss."""


class Tiling(Enum):
    """Whether a step's blocks have several tiles, or one that is the whole sequence."""

    TILES = "tiles"
    WHOLE = "whole"


TILE_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of a sequence in one tile: where a stage's bytes per token were measured."""


@dataclass(frozen=True, kw_only=True)
class StagePeak:
    """Most device bytes alive in a stage of a step in which one block runs, above the state.

    way: of all the block's tiles; x and o are kept with kept tiles, else on the host. What is kept
    is in the bytes, and gradients that the step has made so far. They are `base_bytes +
    bytes_per_token * tokens + bytes_per_token2 * tokens**2`. bytes_per_token: one for each of
    `TILE_SHARES`, straight lines between; of a sequence in one tile a single one.
    """

    stage: str
    way: TilePlace
    tiling: Tiling
    base_bytes: float
    bytes_per_token: tuple[float, ...]
    bytes_per_token2: float

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise InvalidInput(f"StagePeak.stage is {self.stage!r}; it must be one of {STAGES}")
        check_fields(self, ("base_bytes", "bytes_per_token2"))
        wanted = len(TILE_SHARES) if self.tiling is Tiling.TILES else 1
        if len(self.bytes_per_token) != wanted:
            raise InvalidInput(
                f"StagePeak.bytes_per_token has {len(self.bytes_per_token)} figures; "
                f"{self.tiling.value} need {wanted}"
            )
        figures = tuple(check_number("StagePeak.bytes_per_token", n) for n in self.bytes_per_token)
        object.__setattr__(self, "bytes_per_token", figures)

    def at(self, tokens: int, tile_tokens: int) -> int:
        """Bytes for a sequence of `tokens` in tiles of `tile_tokens`."""
        per_token = self._per_token(tile_tokens / tokens)
        pairs = self.bytes_per_token2 * float(tokens) ** 2
        return math.ceil(self.base_bytes + per_token * tokens + pairs)

    def _per_token(self, share: float) -> float:
        """Between the measured shares, and beyond them on the line through the nearest two.

        The highest of several moments that each grow evenly bends upwards: never below between.
        """
        figures = self.bytes_per_token
        if len(figures) == 1:
            return figures[0]
        upper = next((i for i, n in enumerate(TILE_SHARES) if share <= n), len(TILE_SHARES) - 1)
        upper = max(upper, 1)
        low, high = TILE_SHARES[upper - 1 : upper + 1]
        steep = (figures[upper] - figures[upper - 1]) / (high - low)
        return max(figures[upper - 1] + steep * (share - low), 0.0)


SHARED = "shared_bytes_per_token"
"""The figure of `SavedPerToken` that `Profile` has not."""


@dataclass(frozen=True, kw_only=True)
class SavedPerToken:
    """What one token of a block saves, in bytes; the fields are those of `Profile`, and one more.

    shared_bytes_per_token: of pre, what post saves as well: a kept tile has it once.
    """

    x_bytes_per_token: float
    o_bytes_per_token: float
    qkv_bytes_per_token: float
    attention_bytes_per_token: float
    attention_bytes_per_token2: float
    pre_bytes_per_token: float
    post_bytes_per_token: float
    shared_bytes_per_token: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, tuple(self.figures))

    @property
    def figures(self) -> dict[str, float]:
        """All of them by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def profile_figures(self) -> dict[str, float]:
        """Those that are fields of `Profile`."""
        return {name: n for name, n in self.figures.items() if name != SHARED}

    @property
    def kept_tile_bytes_per_token(self) -> float:
        """Of a kept tile: pre, post and q, k, v."""
        both = self.pre_bytes_per_token + self.post_bytes_per_token - self.shared_bytes_per_token
        return both + self.qkv_bytes_per_token

    def times(self, factor: float) -> SavedPerToken:
        """For so many times the sequences."""
        return SavedPerToken(**{name: factor * value for name, value in self.figures.items()})


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """Blocks that ask for the same memory.

    gradient_bytes: of a block's trained parameters. tiles, whole: what it saves in several tiles
    and in one, where q, k and v need no gathering but attention may copy them. peaks: of a block
    that runs by tiles every stage in each way; of one that runs whole those that are not its own.

    Raises: InvalidInput.
    """

    gradient_bytes: int
    tiles: SavedPerToken
    whole: SavedPerToken
    peaks: tuple[StagePeak, ...]

    def __post_init__(self) -> None:
        check_int("BlockKind.gradient_bytes", self.gradient_bytes, 0)

    def saved(self, tokens: int, tile_tokens: int) -> SavedPerToken:
        """What it saves in tiles of that size."""
        return self.whole if tile_tokens >= tokens else self.tiles

    def peak_bytes(self, stage: str, way: TilePlace, tokens: int, tile_tokens: int) -> int:
        """Most bytes in a stage; 0 where nothing was measured there."""
        tiling = Tiling.WHOLE if tile_tokens >= tokens else Tiling.TILES
        found = self._peaks_by_place.get((stage, way, tiling), ())
        return max((p.at(tokens, tile_tokens) for p in found), default=0)

    @cached_property
    def _peaks_by_place(self) -> dict[tuple[str, TilePlace, Tiling], list[StagePeak]]:
        """Looked up once: a plan asks tens of times for each block."""
        found: dict[tuple[str, TilePlace, Tiling], list[StagePeak]] = {}
        for peak in self.peaks:
            found.setdefault((peak.stage, peak.way, peak.tiling), []).append(peak)
        return found

    def times(self, factor: float) -> BlockKind:
        """The kind for so many times the sequences."""
        peaks = tuple(
            replace(
                peak,
                bytes_per_token=tuple(factor * figure for figure in peak.bytes_per_token),
                bytes_per_token2=factor * peak.bytes_per_token2,
            )
            for peak in self.peaks
        )
        tiles, whole = self.tiles.times(factor), self.whole.times(factor)
        return replace(self, tiles=tiles, whole=whole, peaks=peaks)


def check_kinds(kinds: tuple[BlockKind, ...], kind_of_block: tuple[int, ...], num: int) -> None:
    """Refuse kinds that are not those of `num` blocks; none at all are fine.

    Raises: InvalidInput.
    """
    if not kinds and not kind_of_block:
        return
    if len(kind_of_block) != num:
        raise InvalidInput(
            f"Profile.kind_of_block has {len(kind_of_block)} blocks, Profile.num_blocks is {num}"
        )
    for block, kind in enumerate(kind_of_block):
        check_int(f"Profile.kind_of_block[{block}]", kind, 0, len(kinds) - 1)
