"""What calls of a wrapped model may ask for, and what they may not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from memo_train.errors import CachedGeneration, InvalidInput, UnsupportedModel

UNSUPPORTED_OUTPUTS = ("output_router_logits", "output_attentions")
"""Tensors that leave a block beside its output: tiles cannot hand them out."""

_CACHE_MESSAGE = (
    "a wrapped model was asked for a key-value cache; call memo_train.unwrap(model) before "
    "generating, or generate with use_cache=False"
)


class Signature:
    """A forward's parameters."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._signature = inspect.signature(forward)

    def __contains__(self, name: str) -> bool:
        return name in self._signature.parameters

    def by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call's arguments, each by its name. Raises: TypeError as the call would."""
        arguments: dict[str, Any] = {}
        for name, value in self._signature.bind(*args, **kwargs).arguments.items():
            kind = self._signature.parameters[name].kind
            arguments |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return arguments


def check_model_call(arguments: dict[str, Any], signature: Signature) -> tuple[int, int] | None:
    """(batch, tokens) of a call of the model or its decoder, which is told to make no cache.

    Raises: CachedGeneration, UnsupportedModel, InvalidInput.
    """
    if arguments.get("use_cache") or arguments.get("past_key_values") is not None:
        raise CachedGeneration(_CACHE_MESSAGE)
    for name in UNSUPPORTED_OUTPUTS:
        if arguments.get(name):
            raise UnsupportedModel(f"{name}=True is not supported on a wrapped model; unwrap first")
    if "use_cache" in signature:
        arguments["use_cache"] = False
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, torch.Tensor):
        return None
    if tokens.numel() == 0:
        raise InvalidInput(f"a step needs at least one token, got {tuple(tokens.shape)}")
    return tokens.shape[0], tokens.shape[1]


def check_block_call(block: nn.Module, kwargs: dict[str, Any]) -> None:
    """Refuse what must not reach a block. Raises: CachedGeneration, UnsupportedModel."""
    if kwargs.get("past_key_values") is not None:
        raise CachedGeneration(_CACHE_MESSAGE)
    if block.training and getattr(block, "gradient_checkpointing", False):
        raise UnsupportedModel(
            f"gradient checkpointing was turned on for {type(block).__name__} after wrap; turn it "
            "off (gradient_checkpointing=False in TrainingArguments): the plan decides what is "
            "recomputed"
        )
