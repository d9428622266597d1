"""GELU in one pass forward and one backward."""

from __future__ import annotations

from typing import Any

import torch

from memo_train.device import InvalidDeviceArgument
from memo_train.kernels._launch import DTYPES, array, arrays, run

_NAMES = {"none": "gelu_erf", "tanh": "gelu_tanh"}


@torch.library.custom_op("memo_train::gelu", mutates_args=())
def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """GELU of every number, computed in fp32 and rounded once.

    fp32, bf16 or fp16. `approximate` is as in torch: "none" is the error function's, "tanh" the
    approximation. Differentiable; backward is one pass as well.

    Raises:
        InvalidDeviceArgument: another dtype, or another approximation.
        CudaUnavailable: memo-train was built without its kernels.
    """
    x = array(x)
    y = torch.empty_like(x)
    inputs, outputs = (x.data_ptr(),), (y.data_ptr(),)
    run(_name(approximate), x, DTYPES[x.dtype], inputs, outputs, x.numel())
    return y


@torch.library.custom_op("memo_train::gelu_backward", mutates_args=())
def _backward(dy: torch.Tensor, x: torch.Tensor, approximate: str) -> torch.Tensor:
    dy, x = arrays(dy, x)
    dx = torch.empty_like(x)
    inputs, outputs = (dy.data_ptr(), x.data_ptr()), (dx.data_ptr(),)
    run(f"{_name(approximate)}_backward", x, DTYPES[x.dtype], inputs, outputs, x.numel())
    return dx


def _name(approximate: str) -> str:
    if approximate not in _NAMES:
        raise InvalidDeviceArgument(f"approximate must be one of {[*_NAMES]}, got {approximate!r}")
    return _NAMES[approximate]


@gelu.register_fake
def _(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    # As `array` makes x: contiguous, whatever order it came in.
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(dy: torch.Tensor, x: torch.Tensor, approximate: str) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[torch.Tensor, str], output: torch.Tensor) -> None:
    x, ctx.approximate = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
    return _backward(dy, *ctx.saved_tensors, ctx.approximate), None


gelu.register_autograd(_differentiate, setup_context=_save)
