"""Floating-point operations of a block's pre, attention and post, counted by ATen call."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from memo_planner.policy import TilePlace
from memo_planner.trace import BlockFlops
from memo_train.runtime import NOWHERE, HowToRun, WrappedModel, preserved_rng
from memo_train.trace._steps import Way, only_block, run_step, trained_first, uniform_policy

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
    if func.overloadpacket is _aten._grouped_mm:
        return _grouped_flops(args[0], args[1])
    count: Any = flop_registry.get(func.overloadpacket)
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=result))


def _attention_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    first, causal_at, factor = _ATTENTION[func.overloadpacket]
    q, k, v = args[first : first + 3]
    batch, heads, num_queries, qk_dim = q.shape
    products = 2.0 * batch * heads * num_queries * k.shape[2] * (qk_dim + v.shape[3])
    is_causal = kwargs.get("is_causal", args[causal_at] if len(args) > causal_at else False)
    return float(factor * products / (2 if is_causal else 1))


def _grouped_flops(left: torch.Tensor, right: torch.Tensor) -> float:
    """Of a product of each group of rows with its own matrix, as experts make it.

    Where only `right` is split into groups, a matrix of `left` meets its group's columns alone.
    """
    shared = left.shape[0] if left.dim() == 3 and right.dim() == 2 else 1
    return 2.0 * left.numel() / shared * right.shape[-1]


_TILES = 4
_TILE_TOKENS = 16


class StageFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """While active, adds up FLOPs by stage; also the observer that is told of stages."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: dict[str, float] = defaultdict(float)
        self._stage = "between"

    def __call__(self, stage: str, block: int = NOWHERE, tile: int = NOWHERE) -> None:
        """`stage` begins."""
        self._stage = stage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.flops[self._stage] += flops_of(func, args, kwargs, result)
        return result


def count_block_flops(wrapped: WrappedModel, batch: int) -> BlockFlops:
    """FLOPs of one block of an installed `wrapped`, by one short step of `batch` sequences.

    FLOPs depend on shapes alone, so a short step tells all lengths: pre's and post's grow with the
    tokens, attention's with their square.
    """
    tokens = _TILES * _TILE_TOKENS
    order = trained_first(wrapped.parts.blocks)
    tiled = [i for i in order if wrapped.verdicts[i].how is HowToRun.TILED]
    counter = StageFlops()
    policy = uniform_policy(wrapped, tokens, _TILE_TOKENS, Way(place=TilePlace.KEEP))
    preserved = preserved_rng(wrapped.device.generators)
    with preserved, only_block(wrapped, (tiled or order)[0]), counter:
        run_step(wrapped, counter, batch, policy)
    flops = counter.flops
    return BlockFlops(
        pre_flops_per_token=flops["pre"] / tokens,
        post_flops_per_token=flops["post"] / tokens,
        attention_flops_per_token2=flops["attention"] / tokens**2,
        pre_backward_flops_per_token=flops["pre_backward"] / tokens,
        post_backward_flops_per_token=flops["post_backward"] / tokens,
        attention_backward_flops_per_token2=flops["attention_backward"] / tokens**2,
    )
