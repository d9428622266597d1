"""What every operation does with its tensors: checks them, aligns them, and runs the kernel.

The copy of a token tile out of a tensor of all tokens, or into one, is the plainest of them.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from memo_train.device import CudaUnavailable, InvalidDeviceArgument

# The widest load and store of a GPU's thread; csrc/kernels/packs.h has the same.
PACK_BYTES = 16
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def arrays(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors, contiguous and aligned. Raises: InvalidDeviceArgument unless they are alike."""
    for tensor in tensors[1:]:
        check_alike(tensors[0], tensor)
    return tuple(array(tensor) for tensor in tensors)


def array(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, contiguous and aligned. Raises: InvalidDeviceArgument if no kernel takes it."""
    check_dtype(tensor)
    dense = tensor.contiguous()
    # A contiguous view may begin at any element; a clone begins where the allocator aligns.
    return dense.clone() if dense.data_ptr() % PACK_BYTES else dense


def check_dtype(tensor: torch.Tensor) -> None:
    """Raises: InvalidDeviceArgument if there are no kernels for the tensor's dtype."""
    if tensor.dtype not in DTYPES:
        raise InvalidDeviceArgument(f"no kernel for {tensor.dtype}; use fp32, bf16 or fp16")


def check_alike(
    tensor: torch.Tensor,
    other: torch.Tensor,
    properties: tuple[str, ...] = ("shape", "dtype", "device"),
) -> None:
    """Raises: InvalidDeviceArgument where the two differ in one of the properties."""
    for what in properties:
        mine, theirs = getattr(tensor, what), getattr(other, what)
        if mine != theirs:
            raise InvalidDeviceArgument(f"tensors differ in {what}: {mine} and {theirs}")


def packs(numbers: int, tensor: torch.Tensor, what: str) -> int:
    """That many numbers of the tensor's dtype in packs of 16 bytes.

    Raises: InvalidDeviceArgument if they are no whole packs.
    """
    num_bytes = numbers * tensor.element_size()
    if num_bytes % PACK_BYTES:
        raise InvalidDeviceArgument(
            f"{what} is {numbers} numbers of {tensor.dtype}, {num_bytes} bytes, and must be a "
            f"multiple of {PACK_BYTES} bytes; use torch's own operation for it"
        )
    return num_bytes // PACK_BYTES


def run(name: str, where: torch.Tensor, *args: Any) -> None:
    """Call a function of `memo_train._kernels`, on the current stream of a GPU or on the host."""
    function = getattr(_load(), name)
    if where.device.type == "cuda":
        # A kernel goes to the current device's stream, which may be another GPU's.
        with torch.cuda.device(where.device):
            function(*args, torch.cuda.current_stream().cuda_stream)
    else:
        function(*args, None)


def is_built() -> bool:
    """Whether this build of memo-train has kernels."""
    try:
        _load()
    except CudaUnavailable:
        return False
    return True


def _load() -> ModuleType:
    try:
        from memo_train import _kernels
    except ImportError as error:
        raise CudaUnavailable(
            "memo-train was built without its kernels; build it where a CUDA toolkit is installed, "
            "with MEMO_BUILD_CUDA=1"
        ) from error
    return _kernels


def copy_tile(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy `source` into `target`, both [batch, tokens, width], each maybe part of a wider one.

    Gathers a tile where `target` is contiguous, scatters one where `source` is. Rows, pitches and
    addresses must be multiples of 16 bytes. Not differentiable.

    Raises:
        InvalidDeviceArgument: shapes, dtypes or devices differ, or strides are others.
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
    # All but the addresses, which stay in bytes.
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
