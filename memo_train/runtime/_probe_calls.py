"""The model's own calls of its blocks on a few tokens, for the probe to repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memo_train.device import Device
from memo_train.errors import UnsupportedModel
from memo_train.runtime._parts import ModelParts


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """How the model called a block: x [1, tokens, hidden], and everything else."""

    x: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Everything but x."""
        return self.args, self.kwargs


def record_calls(parts: ModelParts, tokens: int, device: Device) -> list[BlockCall]:
    """The arguments with which the model, on `device`, calls each block, on `tokens` tokens.

    Raises: UnsupportedModel when a block is never called, or called with cross-attention.
    """
    calls: dict[int, BlockCall] = {}

    def recorder(index: int) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x, args, kwargs = split_input(args, kwargs)
            calls[index] = BlockCall(x=x.detach(), args=args, kwargs=kwargs)

        return record

    handles = [
        block.register_forward_pre_hook(recorder(index), with_kwargs=True)
        for index, block in enumerate(parts.blocks)
    ]
    try:
        with torch.enable_grad():
            parts.run(probe_ids(parts, tokens, device))
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) < len(parts.blocks):
        missing = next(index for index in range(len(parts.blocks)) if index not in calls)
        name = type(parts.blocks[missing]).__name__
        raise UnsupportedModel(f"the model never calls block {missing} ({name}) of its list")
    return [calls[index] for index in range(len(parts.blocks))]


def probe_ids(parts: ModelParts, tokens: int, device: Device) -> torch.Tensor:
    """Token ids [1, tokens] on `device` that vary."""
    return torch.arange(tokens, device=device.torch_device)[None] * 7 % parts.vocab_size


def split_input(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """A block call's x, and its other arguments. Raises: UnsupportedModel on cross-attention."""
    if kwargs.get("encoder_hidden_states") is not None:
        raise UnsupportedModel("cross-attention (encoder_hidden_states) is not supported")
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode (no dropout), restored afterwards one by one."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
