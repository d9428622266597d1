"""Finds out on random numbers whether a kernel computes what a part of a model does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NOT_RUNNABLE = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
_SCALES = (0.1, 1.0, 100.0)
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
_TOKENS, _HEADS, _HEAD_DIM = 3, 4, 32


def module_differs(
    module: nn.Module, forward: Callable[..., Any], width: int, like: Tensor
) -> str | None:
    """Why `forward(module, x)` is not module.forward(x) for x [1, tokens, width], in training mode.

    like: a tensor of the dtype and on the device to try. None if nothing is seen to differ.
    """
    modes = [(each, each.training) for each in module.modules()]
    module.train()  # shows dropout
    try:
        tries = [(_random((1, _TOKENS, width), like, scale),) for scale in _SCALES]
        return _differs(module.forward, lambda x: forward(module, x), tries, like)
    finally:
        for each, is_training in modes:
            each.training = is_training


def rotation_differs(
    own: Callable[..., Any], ours: Callable[..., Any], num_rotated: int, like: Tensor
) -> str | None:
    """Why two functions of (q, k, cos, sin), or with `num_rotated` 1 of (x, cos, sin), differ."""
    angles = torch.cat([_random((1, _TOKENS, _HEAD_DIM // 2), like, 1.0)] * 2, dim=-1)
    heads = [
        _random((2, _HEADS, _TOKENS, _HEAD_DIM), like, 1.0),
        _random((2, 2, _TOKENS, _HEAD_DIM), like, 1.0),
    ]
    return _differs(own, ours, [(*heads[:num_rotated], angles.cos(), angles.sin())], like)


def _differs(
    own: Callable[..., Any],
    ours: Callable[..., Any],
    tries: Sequence[tuple[Tensor, ...]],
    like: Tensor,
) -> str | None:
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            errors = [_error(own(*args), ours(*args)) for args in tries]
    except NOT_RUNNABLE as error:
        return f"it does not run on random numbers ({error})"
    if max(errors) > _TOLERANCE[like.dtype]:
        return f"it computes something else: its results are {max(errors):.2g} away"
    return None


def _error(own: Any, ours: Any) -> float:
    """The largest difference over the largest number; infinite where only one is finite."""
    pairs = list(zip(_tensors(own), _tensors(ours), strict=True))
    return max(_relative(a.double(), b.double()) for a, b in pairs)


def _relative(own: Tensor, ours: Tensor) -> float:
    finite = own.isfinite()
    if own.shape != ours.shape or not torch.equal(finite, ours.isfinite()):
        return float("inf")
    own, ours = own.where(finite, torch.zeros_like(own)), ours.where(finite, torch.zeros_like(ours))
    return float((own - ours).abs().max() / own.abs().max().clamp_min(1e-30))


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def _random(shape: tuple[int, ...], like: Tensor, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(shape, generator=generator)).to(like.device, like.dtype)
