"""Who watches a step go by: the profiler in `trace` learns from it what each stage takes.

Stages, in order: "pre", "attention", "post" of a block, "between" blocks, "loss", and in backward
"post_backward", "attention_backward", "pre_backward", again with "between". The token-wise stages
and the loss are told for every tile.
"""

from collections.abc import Callable

NOWHERE = -1
"""The block of a stage outside blocks, the tile of a stage that all tiles share."""

Observer = Callable[[str, int, int], None]
"""(stage, block, tile): what begins now, and where; `NOWHERE` is no block or no tile."""


def ignore(stage: str, block: int, tile: int) -> None:
    """The observer of an ordinary step."""
