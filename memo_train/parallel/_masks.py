"""Attention masks of all tokens, where a model of Transformers makes them from a rank's own.

A modelling file of Transformers calls `create_causal_mask` and its kin with the embeddings and the
positions at hand. While a step is shared, these calls are answered for the tokens of all ranks:
windows, chunked attention, packed documents and padding come out as in one process.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memo_train.errors import UnsupportedModel

_LIBRARY = "transformers.masking_utils"
_EMBEDDINGS = ("inputs_embeds", "input_embeds")  # the latter until Transformers 5.3
_OF_OWN_TOKENS = (
    "or_mask_function",
    "and_mask_function",
    "block_sequence_ids",
    "encoder_hidden_states",
)

_MaskMaker = tuple[dict[str, Any], str, Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class WholeSequences:
    """What masks are made of: positions [batch, tokens], and 1 for each token that is no padding.

    attention_mask: [batch, tokens], or None if there is no padding.
    """

    positions: torch.Tensor
    attention_mask: torch.Tensor | None


def mask_makers(model: nn.Module) -> list[_MaskMaker]:
    """Where the modelling files of `model` have functions of Transformers that make masks."""
    library = vars(sys.modules[_LIBRARY]) if _LIBRARY in sys.modules else {}
    makers = {id(f) for name, f in library.items() if name.startswith("create_") and callable(f)}
    files = {cls.__module__ for module in model.modules() for cls in type(module).__mro__}
    spaces = [vars(sys.modules[name]) for name in files - {_LIBRARY} if name in sys.modules]
    return [(s, name, value) for s in spaces for name, value in s.items() if id(value) in makers]


@contextmanager
def whole_masks(makers: list[_MaskMaker], whole: WholeSequences) -> Iterator[None]:
    """While active, `makers` make the masks of `whole`. Raises, from there: UnsupportedModel."""
    for space, name, plain in makers:
        space[name] = _maker(plain, whole)
    try:
        yield
    finally:
        for space, name, plain in makers:
            space[name] = plain


def _maker(plain: Callable[..., Any], whole: WholeSequences) -> Callable[..., Any]:
    names = list(inspect.signature(plain).parameters)

    def make(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        own = [name for name in _OF_OWN_TOKENS if given.get(name) is not None]
        if own:
            raise UnsupportedModel(
                f"the model makes a mask with {own[0]}, which knows the tokens of one rank only; "
                "wrap it without mesh"
            )
        embeddings = next(name for name in _EMBEDDINGS if name in given)
        x = given[embeddings]
        # Only its shape, dtype and device are looked at.
        given[embeddings] = x.new_empty(()).expand(*whole.positions.shape, x.shape[-1])
        given["attention_mask"] = whole.attention_mask
        if given.get("position_ids") is not None:
            given["position_ids"] = whole.positions
        return plain(**given)

    return make
