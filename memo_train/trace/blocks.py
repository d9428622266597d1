"""Tells an observer where the step of a model that is not wrapped has come to, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memo_train.runtime.observe import NOWHERE, Observer
from memo_train.runtime.parts import ModelParts
from memo_train.runtime.probe_calls import split_input
from memo_train.runtime.tile import split_output


@contextmanager
def watched_blocks(parts: ModelParts, observer: Observer) -> Iterator[None]:
    """While active: "block" and "block_backward" of every block, "loss" after the decoder.

    The decoder's and blocks' own forwards run unchanged; a step may differ from one that is not
    watched by what the hooks on a block's input and output do to autograd's own accumulation.
    """
    handles = []
    for index, block in enumerate(parts.blocks):
        handles.append(block.register_forward_pre_hook(_entering(index, observer), prepend=True))
        handles.append(block.register_forward_hook(_leaving(index, observer), with_kwargs=True))
    decoder = parts.decoder
    handles.append(decoder.register_forward_hook(lambda *_: observer("loss", NOWHERE, NOWHERE)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(index: int, observer: Observer) -> Callable[..., None]:
    def entering(block: nn.Module, args: tuple[Any, ...]) -> None:
        observer("block", index, NOWHERE)

    return entering


def _leaving(index: int, observer: Observer) -> Callable[..., None]:
    def leaving(
        block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        observer("between", NOWHERE, NOWHERE)
        y, _ = split_output(output)
        _tell_backward(y, "block_backward", index, observer)
        if index == 0:
            x, *_ = split_input(args, kwargs)
            _tell_backward(x, "between", NOWHERE, observer)

    return leaving


def _tell_backward(tensor: torch.Tensor, stage: str, block: int, observer: Observer) -> None:
    if tensor.requires_grad:
        tensor.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: observer(stage, block, NOWHERE)
        )
