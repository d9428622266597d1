"""Floating-point operations and bytes of one ATen operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: (0, 4, 1.0),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 7, 2.5),
}
"""Operation -> position of q (k and v follow it), of is_causal, FLOPs over forward's: backward has
five matrix products, two of them forward's again."""

_ALLOCATES_ONLY = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty}


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """What one operation does: FLOPs, whether they are attention's, bytes read and written."""

    flops: float
    is_attention: bool
    touched_bytes: int


def cost_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> OpCost:
    """The cost of one call that is not a view."""
    packet = func.overloadpacket
    values = [*args, *(result if isinstance(result, tuple) else (result,))]
    touched_bytes = sum(value.nbytes for value in values if isinstance(value, torch.Tensor))
    return OpCost(
        flops=flops_of(func, args, kwargs, result),
        is_attention=packet in _ATTENTION,
        touched_bytes=0 if packet in _ALLOCATES_ONLY else touched_bytes,
    )


def flops_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> float:
    """FLOPs of one call, a multiply-add counted as two; 0 for all but matrix products and
    attention. Causal attention does half of the full one."""
    if func.overloadpacket in _ATTENTION:
        return _attention_flops(func, args, kwargs)
    count: Any = flop_registry.get(func.overloadpacket)
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=result))


def _attention_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    first, causal_at, factor = _ATTENTION[func.overloadpacket]
    q, k, v = args[first : first + 3]
    batch, heads, num_queries, qk_dim = q.shape
    products = 2.0 * batch * heads * num_queries * k.shape[2] * (qk_dim + v.shape[3])
    is_causal = kwargs.get("is_causal", args[causal_at] if len(args) > causal_at else False)
    return float(factor * products / (2 if is_causal else 1))
