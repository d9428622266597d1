"""The model's own calls of its blocks on a few tokens, for the probe to repeat."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from memo_train.device import Device
from memo_train.errors import UnsupportedModel
from memo_train.runtime._loss_tail import run_decoder
from memo_train.runtime._parts import ModelParts
from memo_train.runtime._sharded import is_fully_sharded, whole
from memo_train.runtime._tile import split_output


@dataclass(frozen=True, kw_only=True)
class BlockCall:
    """How the model called a block: x [1, tokens, hidden], and everything else.

    rest: its outputs besides y, None if it returns y alone. as_is: why it can only run as it is.
    num_ids: tokens that the model was given.
    """

    x: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rest: tuple[Any, ...] | None = None
    as_is: str | None = None
    num_ids: int = 0

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Everything but x."""
        return self.args, self.kwargs


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run of the model up to the end of its decoder.

    calls: of each block. decoder: what the model called as its decoder, and decoded, what that
    gave; None and the model's output where it calls none, or has hooks of its own.
    """

    calls: list[BlockCall]
    decoder: nn.Module | None
    decoded: Any


def record_calls(parts: ModelParts, tokens: int, device: Device) -> list[BlockCall]:
    """The arguments with which the model, on `device`, calls each block, on `tokens` tokens.

    Raises: UnsupportedModel when a block is called with cross-attention.
    """
    return record_run(parts, tokens, device).calls


def record_run(parts: ModelParts, tokens: int, device: Device) -> RecordedRun:
    """As `record_calls`, with what the decoder gave. Raises: UnsupportedModel."""
    calls: dict[int, BlockCall] = {}

    def recorder(index: int) -> Callable[..., None]:
        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            calls[index] = replace(_call_of(module, args, kwargs, output), num_ids=tokens)

        return record

    handles = [
        block.register_forward_hook(recorder(index), with_kwargs=True)
        for index, block in enumerate(parts.blocks)
    ]
    ids = probe_ids(parts, tokens, device)
    try:
        # Of a model that is sharded as a whole, its own hooks bring its parameters in.
        outer = () if is_fully_sharded(parts.causal_lm) else parts.sharded_outside
        with torch.enable_grad(), whole(outer):
            decoder, decoded = _run(parts, ids)
            if decoder is not None and len(calls) < len(parts.blocks):
                decoder, decoded = None, parts.run(ids)  # some may be called behind the decoder
    finally:
        for handle in handles:
            handle.remove()
    never = _as_is("the model does not call it")
    every = [calls.get(index, never) for index in range(len(parts.blocks))]
    return RecordedRun(calls=every, decoder=decoder, decoded=decoded)


def _run(parts: ModelParts, ids: torch.Tensor) -> tuple[nn.Module | None, Any]:
    """Run the model, without its head where that can be: on a large vocabulary it takes longest."""
    model = parts.causal_lm
    # Each counts on the other to follow, and so do those of what is sharded with others.
    if model._forward_pre_hooks or model._forward_hooks or parts.sharded_outside:
        return None, parts.run(ids)
    return run_decoder(model, parts.decoder, lambda: parts.run(ids))


def _call_of(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> BlockCall:
    given = (name_of_input(kwargs),) if not args and kwargs else ()
    first = tuple(inspect.signature(block.forward).parameters)[:1]
    if given not in ((), first):
        return _as_is("it is called with its input by name, behind another argument")
    x, args, kwargs = split_input(args, kwargs)
    y, rest = split_output(output)
    tensors = isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
    if not tensors or y.shape != x.shape:
        return _as_is("its output is not of its input's shape")
    return BlockCall(x=x.detach(), args=args, kwargs=kwargs, rest=rest)


def _as_is(why: str) -> BlockCall:
    return BlockCall(x=torch.empty(0), args=(), kwargs={}, as_is=why)


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
    return rest.pop(name_of_input(rest)), (), rest


def name_of_input(kwargs: dict[str, Any]) -> str:
    """The name of x in a call that gives all arguments by name."""
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))


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
