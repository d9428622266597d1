"""RMSNorm: a pass forward, one backward, and two more for the gradient of the weight."""

from __future__ import annotations

from typing import Any

import torch

from memo_train.device import InvalidDeviceArgument
from memo_train.kernels._launch import DTYPES, array, arrays, check_alike, packs, run

# Fixed, and not by the size of a GPU: the order of the sums depends on the shape alone.
_MOST_BANDS = 128
_LEAST_BAND_ROWS = 64


@torch.library.custom_op("memo_train::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight, computed in fp32 and rounded once.

    x: [..., hidden] in fp32, bf16 or fp16; weight: [hidden] in the same dtype. A row must be a
    multiple of 16 bytes. Differentiable in both; x and weight are all that is saved. The gradient
    of weight is summed in fp32 and in an order that depends on the shape alone.

    Raises:
        InvalidDeviceArgument: shapes, dtypes or devices do not go together, or another dtype.
        CudaUnavailable: memo-train was built without its kernels.
    """
    shape = _row_shape(x, weight)
    x, weight = array(x), array(weight)
    y = torch.empty_like(x)
    addresses = (x.data_ptr(), weight.data_ptr(), y.data_ptr())
    run("rms_norm", x, DTYPES[x.dtype], addresses, shape, epsilon)
    return y


@torch.library.custom_op("memo_train::rms_norm_backward", mutates_args=())
def _backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of x, and 1 / rms of each row in fp32."""
    shape = _row_shape(x, weight)
    (dy, x), weight = arrays(dy, x), array(weight)
    dx, scales = torch.empty_like(x), _scales(x)
    addresses = tuple(t.data_ptr() for t in (dy, x, weight, dx, scales))
    run("rms_norm_backward", x, DTYPES[x.dtype], addresses, shape, epsilon)
    return dx, scales


@torch.library.custom_op("memo_train::rms_norm_weight_gradient", mutates_args=())
def _weight_gradient(
    dy: torch.Tensor, x: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    rows, row_packs = _row_shape(x, weight)
    (dy, x), scales = arrays(dy, x), array(scales)
    band_rows = max(_LEAST_BAND_ROWS, -(-rows // _MOST_BANDS))
    num_bands = -(-rows // band_rows)
    sums = x.new_empty((num_bands, x.shape[-1]), dtype=torch.float32)
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    addresses = tuple(t.data_ptr() for t in (dy, x, scales, sums, d_weight))
    dtype = DTYPES[x.dtype]
    run("rms_norm_weight_gradient", x, dtype, addresses, (rows, row_packs), band_rows)
    return d_weight


def _row_shape(x: torch.Tensor, weight: torch.Tensor) -> tuple[int, int]:
    """Rows, and packs of a row."""
    check_alike(x, weight, ("dtype", "device"))
    if x.dim() == 0 or weight.shape != x.shape[-1:]:
        raise InvalidDeviceArgument(
            f"weight must be [hidden] and x [..., hidden], got {tuple(weight.shape)} and "
            f"{tuple(x.shape)}"
        )
    hidden = x.shape[-1]
    return x.numel() // max(hidden, 1), packs(hidden, x, "a row of x")


def _scales(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.float32)


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), _scales(x)


@_weight_gradient.register_fake
def _(
    dy: torch.Tensor, x: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, float], output: torch.Tensor) -> None:
    x, weight, ctx.epsilon = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(
    ctx: Any, dy: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
    x, weight = ctx.saved_tensors
    dx, scales = _backward(dy, x, weight, ctx.epsilon)
    # Two more passes over dy and x, which a frozen weight does without.
    d_weight = _weight_gradient(dy, x, scales, weight) if ctx.needs_input_grad[1] else None
    return dx, d_weight, None


rms_norm.register_autograd(_differentiate, setup_context=_save)
