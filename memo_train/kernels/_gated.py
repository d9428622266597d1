"""SwiGLU in one pass forward and one backward."""

from __future__ import annotations

from typing import Any

import torch

from memo_train.kernels._launch import DTYPES, arrays, run


@torch.library.custom_op("memo_train::swiglu", mutates_args=())
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, computed in fp32 and rounded once; gate, up and the result have one shape.

    fp32, bf16 or fp16. Differentiable in both; backward is one pass as well.

    Raises:
        InvalidDeviceArgument: shapes, dtypes or devices differ, or another dtype.
        CudaUnavailable: memo-train was built without its kernels.
    """
    gate, up = arrays(gate, up)
    y = torch.empty_like(gate)
    inputs, outputs = (gate.data_ptr(), up.data_ptr()), (y.data_ptr(),)
    run("swiglu", gate, DTYPES[gate.dtype], inputs, outputs, gate.numel())
    return y


@torch.library.custom_op("memo_train::swiglu_backward", mutates_args=())
def _backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    dy, gate, up = arrays(dy, gate, up)
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(gate)
    inputs = (dy.data_ptr(), gate.data_ptr(), up.data_ptr())
    outputs = (d_gate.data_ptr(), d_up.data_ptr())
    run("swiglu_backward", gate, DTYPES[gate.dtype], inputs, outputs, gate.numel())
    return d_gate, d_up


@swiglu.register_fake
def _(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    d = torch.empty_like(gate, memory_format=torch.contiguous_format)
    return d, torch.empty_like(d)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gradients: tuple[torch.Tensor, torch.Tensor] = _backward(dy, *ctx.saved_tensors)
    return gradients


swiglu.register_autograd(_differentiate, setup_context=_save)
