"""Rotary positions in one pass, forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from memo_train.device import InvalidDeviceArgument
from memo_train.kernels._launch import DTYPES, PACK_BYTES, check_alike, check_dtype, packs, run


@torch.library.custom_op("memo_train::rope", mutates_args=())
def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x * cos + cat(-x2, x1) * sin with x1, x2 the halves of x's heads, in fp32, rounded once.

    x: [batch, heads, tokens, head_dim] in fp32, bf16 or fp16, a view of any order whose head_dim
    is contiguous; the result is laid out as x is. cos, sin: [tokens, head_dim] or [batch or 1,
    tokens, head_dim] in x's dtype. Half a head must be a multiple of 16 bytes. Differentiable in
    x; cos and sin are tables.

    Raises:
        InvalidDeviceArgument: shapes, dtypes or devices do not go together, another dtype, or
            cos or sin require a gradient.
        CudaUnavailable: memo-train was built without its kernels.
    """
    return _rotate(x, cos, sin, is_backward=False)


@torch.library.custom_op("memo_train::rope_backward", mutates_args=())
def _backward(dy: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return _rotate(dy, cos, sin, is_backward=True)


def _rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, is_backward: bool
) -> torch.Tensor:
    tables = [_table(table, x) for table in (cos, sin)]
    x = x if _is_strided_packs(x) else x.contiguous()
    y = torch.empty_like(x)
    batch, heads, tokens, head_dim = x.shape
    addresses = tuple(t.data_ptr() for t in (x, *tables, y))
    shape = (batch, heads, tokens, packs(head_dim // 2, x, "half a head"))
    pitches = tuple(tuple(_packed(t, dim) for dim in range(3)) for t in (x, y))
    own_tables = 1 if tables[0].shape[0] > 1 else 0
    table_pitches = (own_tables * _packed(tables[0], 0), _packed(tables[0], 1))
    run("rope", x, DTYPES[x.dtype], addresses, shape, pitches, table_pitches, is_backward)
    return y


def _packed(tensor: torch.Tensor, dim: int) -> int:
    return tensor.stride(dim) * tensor.element_size() // PACK_BYTES


def _table(table: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """cos or sin as [batch or 1, tokens, head_dim], contiguous, if it is x's."""
    check_dtype(x)
    check_alike(x, table, ("dtype", "device"))
    if x.dim() != 4 or x.shape[-1] % 2:
        raise InvalidDeviceArgument(
            f"x must be [batch, heads, tokens, head_dim] with an even head_dim, got "
            f"{tuple(x.shape)}"
        )
    batch, _, tokens, head_dim = x.shape
    whole = table[None] if table.dim() == 2 else table
    if whole.shape not in ((1, tokens, head_dim), (batch, tokens, head_dim)):
        raise InvalidDeviceArgument(
            f"cos and sin of {tuple(x.shape)} must be [{tokens}, {head_dim}] or "
            f"[{batch} or 1, {tokens}, {head_dim}], got {tuple(table.shape)}"
        )
    dense = whole.contiguous()
    return dense.clone() if dense.data_ptr() % PACK_BYTES else dense


def _is_strided_packs(x: torch.Tensor) -> bool:
    """Whether every head of every token begins at a multiple of 16 bytes."""
    begins = [stride * x.element_size() for stride in x.stride()[:3]]
    return x.stride(3) == 1 and not any(b % PACK_BYTES for b in (*begins, x.data_ptr()))


@rope.register_fake
def _(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@_backward.register_fake
def _(dy: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(dy)


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    _, cos, sin = inputs
    if cos.requires_grad or sin.requires_grad:
        raise InvalidDeviceArgument(
            "rope gives no gradients of cos and sin; detach them, or use torch's own operations"
        )
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return _backward(dy, *ctx.saved_tensors), None, None


rope.register_autograd(_differentiate, setup_context=_save)
