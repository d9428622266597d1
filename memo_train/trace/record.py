"""Records one training step as it happens on the device: a trace for the layout."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from memo_planner.codec import encode
from memo_planner.trace.requests import Requests
from memo_planner.trace.trace import Trace, TraceSource
from memo_train.device.choose import device_of
from memo_train.runtime.observe import Observer
from memo_train.runtime.parts import ModelParts, find_parts
from memo_train.runtime.wrapped import WrappedModel
from memo_train.trace.blocks import watched_blocks
from memo_train.trace.places import PlaceRecorder
from memo_train.trace.profile import model_hash


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
        text = json.dumps(encode(step), sort_keys=True, separators=(",", ":"))
        policy_hash = hashlib.sha256(text.encode()).hexdigest()
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
