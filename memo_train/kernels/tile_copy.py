"""Copies of token tiles between a tensor of all tokens and one of their own."""

from __future__ import annotations

import torch

from memo_train.device.errors import InvalidDeviceArgument
from memo_train.kernels.launch import PACK_BYTES, check_alike, run


def copy_tile(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy `source` into `target`, both [batch, tokens, width], each maybe part of a wider one.

    Gathers a tile where `target` is contiguous, scatters one where `source` is. Rows, pitches and
    addresses must be multiples of 16 bytes. Not differentiable.

    Raises:
        InvalidDeviceArgument: shapes, dtypes or devices differ, or the layout is another.
        CudaUnavailable: memo-train was built without its kernels.
    """
    check_alike(target, source)
    _copy(target, source)


@torch.library.custom_op("memo_train::copy_tile", mutates_args={"target"})
def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    batch, tokens, width = _tile_shape(target)
    size = target.element_size()
    pitches = [t.stride(dim) * size for t in (source, target) for dim in (1, 0)]
    places = [width * size, *pitches, target.data_ptr(), source.data_ptr()]
    if any(place % PACK_BYTES for place in places) or {target.stride(2), source.stride(2)} != {1}:
        raise InvalidDeviceArgument(
            f"a tile's rows must be contiguous and multiples of {PACK_BYTES} bytes, got strides "
            f"{target.stride()} and {source.stride()} of {size}-byte elements, width {width}"
        )
    row, *steps = (place // PACK_BYTES for place in places[:5])
    addresses = (target.data_ptr(), source.data_ptr())
    run("copy_rows", target, *addresses, (batch, tokens, row), tuple(steps))


@_copy.register_fake
def _(target: torch.Tensor, source: torch.Tensor) -> None:
    return None


def _tile_shape(tile: torch.Tensor) -> tuple[int, int, int]:
    if tile.dim() != 3:
        raise InvalidDeviceArgument(f"a tile is [batch, tokens, width], got {tuple(tile.shape)}")
    batch, tokens, width = tile.shape
    return batch, tokens, width
