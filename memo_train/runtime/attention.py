"""The attention call: `attention` for own models, and its interception inside frames."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from memo_train.runtime.ambient import Ambient
from memo_train.runtime.frame import Cut, in_frame, wait_for_attention


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    dropout_p: float = 0.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention that a wrapped block is cut at.

    q: [batch, heads, tokens, head_dim]; k, v: the same with as many or fewer heads (GQA), the
    dtype of q. mask: None or broadcastable to [batch, heads, tokens, tokens]; excludes `causal`.
    Returns [batch, heads, tokens, head_dim]. Outside a wrapped block it is PyTorch's own call.
    """
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


@contextmanager
def intercept() -> Iterator[None]:
    """While active, attention calls made inside a frame become cuts.

    Caught are `torch.nn.functional.scaled_dot_product_attention` and whatever attention function
    Transformers picks for a model (`AttentionInterface.get_interface`); calls outside a frame,
    also those the driver makes itself, go through unchanged. May be active in several threads.
    """
    _interception.enter()
    try:
        yield
    finally:
        _interception.leave()


class _Interception:
    """The functions put in place for all threads, while any thread is inside `intercept`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._plain: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
        self._registry: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._put_in_place()
            self._num_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._take_out()

    def _put_in_place(self) -> None:
        self._plain = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = partial(_torch_call, self._plain)
        transformers = sys.modules.get("transformers.modeling_utils")
        self._registry = transformers.ALL_ATTENTION_FUNCTIONS if transformers else None
        if self._registry is not None:
            get = type(self._registry).get_interface
            self._registry.get_interface = partial(_get_interface, get, self._registry)

    def _take_out(self) -> None:
        F.scaled_dot_product_attention = self._plain
        if self._registry is not None:
            del self._registry.get_interface


_interception = _Interception()


def _torch_call(
    plain: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *args: Any,
    **options: Any,
) -> torch.Tensor:
    if not in_frame():
        return plain(query, key, value, *args, **options)
    options |= dict(zip(("attn_mask", "dropout_p", "is_causal", "scale"), args, strict=False))
    return wait_for_attention(_cut((query, key, value), plain, options, o_token_dim=2))


def _get_interface(
    get: Callable[..., Any], registry: Any, implementation: str, default: Any
) -> Callable[..., Any]:
    return partial(_transformers_call, get(registry, implementation, default))


def _transformers_call(
    plain: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The signature of Transformers' attention functions; o is [batch, tokens, heads, dim]."""
    if not in_frame():
        output: tuple[torch.Tensor, torch.Tensor | None] = plain(
            module, query, key, value, attention_mask, **options
        )
        return output

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **whole: Any) -> torch.Tensor:
        o: torch.Tensor = plain(module, q, k, v, attention_mask, **whole)[0]
        return o

    return wait_for_attention(_cut((query, key, value), call, options, o_token_dim=1)), None


def _cut(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    call: Callable[..., torch.Tensor],
    options: dict[str, Any],
    *,
    o_token_dim: int,
) -> Cut:
    q, k, v = qkv
    ambient = Ambient.current(q.device.type)
    return Cut(q=q, k=k, v=v, call=call, options=options, o_token_dim=o_token_dim, ambient=ambient)
