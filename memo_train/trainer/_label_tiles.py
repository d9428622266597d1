"""TRL's log-probabilities of labels in tiles of the size that a plan allows for.

TRL's fused head never makes all logits, but its buffer is for 4,096 tokens and 32,768 words, half a
GiB in fp32, whatever the sequence and the vocabulary are. A plan allows for a tile of the loss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memo_train.planning import StepPlanner

_TOKENS = ("trl.kernels.chunked_logprob", "TOKEN_CHUNK_SIZE")
_WORDS = ("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE")
_TILE_TOKENS = 1024
"""Of a block. Not the plan's own: all steps of a shape must ask for the same memory, the first one,
which is recorded before its plan is known here, included."""


@contextmanager
def label_tiles(planner: StepPlanner, tile_tokens: int | None = None) -> Iterator[None]:
    """While active, TRL's head goes by tiles of the loss. Nothing where TRL has no such head.

    tile_tokens: of a block, as the user asked for. Its backward reads the sizes, too. They change
    the order of sums over parts of the vocabulary and over tokens, and nothing else.
    """
    parts = planner.wrapped.parts
    sizes = {
        _TOKENS: parts.loss_tile_tokens(tile_tokens or _TILE_TOKENS),
        _WORDS: parts.vocab_size,
    }
    places = [(sys.modules.get(module), name, size) for (module, name), size in sizes.items()]
    before: list[tuple[Any, str, int]] = [
        (module, name, getattr(module, name)) for module, name, _ in places if hasattr(module, name)
    ]
    if len(before) < len(places):
        yield
        return
    for (module, name, most), (*_, size) in zip(before, places, strict=True):
        setattr(module, name, min(most, size))
    try:
        yield
    finally:
        for module, name, most in before:
            setattr(module, name, most)
