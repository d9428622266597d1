"""TRL's log-probabilities of labels in tiles of the plan's size.

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
"""Of a block, before any step is planned."""


@contextmanager
def label_tiles(planner: StepPlanner) -> Iterator[None]:
    """While active, TRL's head goes by tiles of the loss. Nothing where TRL has no such head.

    Its backward reads the sizes, too. They change the order of sums over the vocabulary's chunks
    and over tokens, and nothing else.
    """
    parts, last = planner.wrapped.parts, planner.last
    tile_tokens = _TILE_TOKENS if last is None else last.plan.policy.tile_tokens
    sizes = {_TOKENS: parts.loss_tile_tokens(tile_tokens), _WORDS: parts.vocab_size}
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
