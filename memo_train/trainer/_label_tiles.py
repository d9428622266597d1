"""TRL's log-probabilities of labels and its divergences, in tiles of the size that a plan allows.

TRL's fused heads never make all logits, but their buffers are for 4,096 tokens and 32,768 words,
half a GiB in fp32, whatever the sequence and the vocabulary are. A plan allows for a tile of the
loss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memo_train.planning import StepPlanner

_TOKENS = {"trl.kernels.chunked_logprob": 1, "trl.kernels.chunked_divergence": 2}
"""Modules with a TOKEN_CHUNK_SIZE, and how many buffers of so many tokens there are at once."""
_WORDS = (
    ("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE"),
    ("trl.kernels.chunked_divergence", "VOCAB_CHUNK_SIZE"),
)
_TILE_TOKENS = 1024
"""Of a block. Not the plan's own: all steps of a shape must ask for the same memory, the first one,
which is recorded before its plan is known here, included."""


@contextmanager
def label_tiles(planner: StepPlanner, tile_tokens: int | None = None) -> Iterator[None]:
    """While active, TRL's heads go by tiles of the loss. Nothing where TRL has no such head.

    tile_tokens: of a block, as the user asked for. Its backward reads the sizes, too. They change
    the order of sums over parts of the vocabulary and over tokens, and nothing else.
    """
    parts = planner.wrapped.parts
    tokens = parts.loss_tile_tokens(tile_tokens or _TILE_TOKENS)
    sizes = {
        **{(m, "TOKEN_CHUNK_SIZE"): max(1, tokens // number) for m, number in _TOKENS.items()},
        **dict.fromkeys(_WORDS, parts.vocab_size),
    }
    before: list[tuple[Any, str, int]] = []
    for (name, attribute), size in sizes.items():
        module = sys.modules.get(name)
        if hasattr(module, attribute):
            before.append((module, attribute, getattr(module, attribute)))
            setattr(module, attribute, min(before[-1][2], size))
    try:
        yield
    finally:
        for module, attribute, most in before:
            setattr(module, attribute, most)
