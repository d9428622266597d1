"""What the probe found out about a block."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from memo_train.runtime.block_state import AtCut
from memo_train.runtime.tiles import TokenDims


class HowToRun(Enum):
    """By token tiles; checkpointed whole with x swapped; or as it is, with nothing saved."""

    TILED = "tiled"
    CHECKPOINTED = "checkpointed"
    PLAIN = "plain"


@dataclass(frozen=True, kw_only=True)
class BlockVerdict:
    """How a block may be run, and why not by tiles. The rest holds for tiles only."""

    how: HowToRun
    because: str | None = None
    at_cut: AtCut = AtCut.HOLD
    token_dims: TokenDims = field(default_factory=dict)
