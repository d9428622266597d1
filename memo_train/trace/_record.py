"""Records one training step as it happens on the device: a trace for the layout.

A model that is not wrapped tells by hooks where its step has come to.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memo_planner.codec import encode, hash_of
from memo_planner.trace import Requests, Trace, TraceSource
from memo_train.device import device_of
from memo_train.runtime import (
    NOWHERE,
    ModelParts,
    Observer,
    WrappedModel,
    find_parts,
    split_input,
    split_output,
)
from memo_train.trace._places import PlaceRecorder
from memo_train.trace._profile import model_hash


@contextmanager
def watched_blocks(parts: ModelParts, observer: Observer) -> Iterator[None]:
    """While active: "block" and "block_backward" of every block, "loss" after the decoder.

    The decoder's and blocks' own forwards run unchanged; a step may differ from one that is not
    watched by what the hooks on a block's input and output do to autograd's own accumulation.
    """
    handles = []
    for index, block in enumerate(parts.blocks):
        # Ahead of users' hooks: what they allocate counts to the block.
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
        # No other block tells when the first one's backward is over.
        if index == 0:
            x, *_ = split_input(args, kwargs)
            _tell_backward(x, "between", NOWHERE, observer)

    return leaving


def _tell_backward(tensor: torch.Tensor, stage: str, block: int, observer: Observer) -> None:
    if tensor.requires_grad:
        tensor.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: observer(stage, block, NOWHERE)
        )


def record_step(
    model: nn.Module,
    ids: torch.Tensor,
    *,
    labels: torch.Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    wrapped: WrappedModel | None = None,
) -> Trace:
    """Train one step for real and record every request to device memory.

    ids: [batch, tokens] int64; labels: the same shape, `ids` if not given. Without an `optimizer`
    gradients are added to those that are there and stay.
    wrapped: the runtime behind a wrapped `model`; stages, blocks and tiles are then its own.
    A first step also plans, and makes the optimiser's moments: record a later one.
    """
    gc.collect()  # else garbage of before is freed in mid-step, and looks like the step's
    parts = find_parts(model) if wrapped is None else wrapped.parts
    batch = Batch(ids=ids, labels=ids if labels is None else labels)
    device = device_of(model.parameters()) if wrapped is None else wrapped.device
    requests = record_requests(parts, wrapped, PlaceRecorder(device), batch, optimizer)
    return Trace.of(source_of(parts, wrapped, tuple(ids.shape), "recorded"), requests)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step trains on: ids and labels, each [batch, tokens] int64."""

    ids: torch.Tensor
    labels: torch.Tensor


def record_requests(
    parts: ModelParts,
    wrapped: WrappedModel | None,
    recorder: PlaceRecorder,
    batch: Batch,
    optimizer: torch.optim.Optimizer | None,
) -> Requests:
    """Train one step while `recorder` records."""
    with _watched(parts, wrapped, recorder):
        recorder.start()
        try:
            _step(parts, batch, optimizer, recorder)
        finally:
            requests = recorder.stop()
    return requests


def _step(
    parts: ModelParts,
    batch: Batch,
    optimizer: torch.optim.Optimizer | None,
    recorder: PlaceRecorder,
) -> None:
    loss: torch.Tensor = parts.run(batch.ids, batch.labels).loss
    recorder.begin("backward")
    loss.backward()  # type: ignore[no-untyped-call]
    # Not in memory while the optimiser runs.
    del loss
    if optimizer is not None:
        recorder.begin("optimizer")
        optimizer.step()
        optimizer.zero_grad()


@contextmanager
def _watched(parts: ModelParts, wrapped: WrappedModel | None, observer: Observer) -> Iterator[None]:
    if wrapped is None:
        with watched_blocks(parts, observer):
            yield
        return
    before, wrapped.observer = wrapped.observer, observer
    try:
        yield
    finally:
        wrapped.observer = before


def source_of(
    parts: ModelParts, wrapped: WrappedModel | None, shape: tuple[int, ...], kind: str
) -> TraceSource:
    """What a step of `shape` (batch, tokens) is a step of. kind: as in `TraceSource`."""
    batch, tokens = shape
    tile_tokens, policy_hash = 0, "none"
    if wrapped is not None and wrapped.choose_policy is not None:
        step = wrapped.choose_policy(batch, tokens)
        tile_tokens = step.policy.tile_tokens
        policy_hash = hash_of(encode(step))
    return TraceSource(
        kind=kind,
        model=type(parts.causal_lm).__name__,
        model_hash=model_hash(parts.causal_lm),
        device=next(parts.causal_lm.parameters()).device.type,
        batch=batch,
        tokens=tokens,
        num_blocks=len(parts.blocks),
        tile_tokens=tile_tokens,
        policy_hash=policy_hash,
    )
