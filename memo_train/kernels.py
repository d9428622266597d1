"""Token-wise operations in one pass over memory, and copies of token tiles between layouts.

On a GPU these are kernels. On the CPU the same element code runs on the calling thread: a reference
for tests, not fast. Nothing in the runtime uses them yet; on a GPU they have not run.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from memo_train.device.errors import CudaUnavailable, InvalidDeviceArgument

__all__ = ["copy_tile", "swiglu"]

_PACK_BYTES = 16
_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


@torch.library.custom_op("memo_train::swiglu", mutates_args=())
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, computed in fp32 and rounded once; gate, up and the result have one shape.

    fp32, bf16 or fp16. Differentiable in both; backward is one pass as well.

    Raises:
        InvalidDeviceArgument: shapes, dtypes or devices differ, or another dtype.
        CudaUnavailable: memo-train was built without its kernels.
    """
    gate, up = _arrays(gate, up)
    y = torch.empty_like(gate)
    run = getattr(_load(), f"swiglu_{_DTYPES[gate.dtype]}")
    _run(gate, run, gate.data_ptr(), up.data_ptr(), y.data_ptr(), gate.numel())
    return y


@torch.library.custom_op("memo_train::swiglu_backward", mutates_args=())
def _swiglu_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    dy, gate, up = _arrays(dy, gate, up)
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(gate)
    run = getattr(_load(), f"swiglu_backward_{_DTYPES[gate.dtype]}")
    _run(gate, run, [t.data_ptr() for t in (dy, gate, up, d_gate, d_up)], gate.numel())
    return d_gate, d_up


@swiglu.register_fake
def _(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@_swiglu_backward.register_fake
def _(dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    d = torch.empty_like(gate, memory_format=torch.contiguous_format)
    return d, torch.empty_like(d)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gradients: tuple[torch.Tensor, torch.Tensor] = _swiglu_backward(dy, *ctx.saved_tensors)
    return gradients


swiglu.register_autograd(_differentiate, setup_context=_save)


def copy_tile(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy `source` into `target`, both [batch, tokens, width], each maybe part of a wider one.

    Gathers a tile where `target` is contiguous, scatters one where `source` is. Rows, pitches and
    addresses must be multiples of 16 bytes. Not differentiable.

    Raises:
        InvalidDeviceArgument: shapes, dtypes or devices differ, or the layout is another.
        CudaUnavailable: memo-train was built without its kernels.
    """
    _check_alike(target, source)
    batch, tokens, width = _tile_shape(target)
    size = target.element_size()
    pitches = [t.stride(dim) * size for t in (source, target) for dim in (1, 0)]
    places = [width * size, *pitches, target.data_ptr(), source.data_ptr()]
    if any(place % _PACK_BYTES for place in places) or {target.stride(2), source.stride(2)} != {1}:
        raise InvalidDeviceArgument(
            f"a tile's rows must be contiguous and multiples of {_PACK_BYTES} bytes, got strides "
            f"{target.stride()} and {source.stride()} of {size}-byte elements, width {width}"
        )
    row, *steps = (place // _PACK_BYTES for place in places[:5])
    shape, addresses = (batch, tokens, row), (target.data_ptr(), source.data_ptr())
    _run(target, _load().copy_rows, *addresses, shape, tuple(steps))


def _tile_shape(tile: torch.Tensor) -> tuple[int, int, int]:
    if tile.dim() != 3:
        raise InvalidDeviceArgument(f"a tile is [batch, tokens, width], got {tuple(tile.shape)}")
    batch, tokens, width = tile.shape
    return batch, tokens, width


def _arrays(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors, contiguous and aligned, if they are alike and there are kernels for them."""
    for tensor in tensors[1:]:
        _check_alike(tensors[0], tensor)
    if tensors[0].dtype not in _DTYPES:
        raise InvalidDeviceArgument(f"no kernel for {tensors[0].dtype}; use fp32, bf16 or fp16")
    dense = (tensor.contiguous() for tensor in tensors)
    return tuple(t.clone() if t.data_ptr() % _PACK_BYTES else t for t in dense)


def _check_alike(tensor: torch.Tensor, other: torch.Tensor) -> None:
    for what in ("shape", "dtype", "device"):
        mine, theirs = getattr(tensor, what), getattr(other, what)
        if mine != theirs:
            raise InvalidDeviceArgument(f"tensors differ in {what}: {mine} and {theirs}")


def _run(where: torch.Tensor, run: Any, *args: Any) -> None:
    if where.device.type == "cuda":
        with torch.cuda.device(where.device):
            run(*args, torch.cuda.current_stream().cuda_stream)
    else:
        run(*args, None)


def _load() -> ModuleType:
    try:
        from memo_train import _kernels
    except ImportError as error:
        raise CudaUnavailable(
            "memo-train was built without its kernels; build it where a CUDA toolkit is installed, "
            "with MEMO_BUILD_CUDA=1"
        ) from error
    return _kernels
