"""A known tensor with zeros behind its last dimension, as kernels that want round sizes make it.

On a GPU, PyTorch's attention pads heads whose size is no multiple of 8, and saves what it padded:
q, k, v and o once more, of all tokens, in memory of their own. They are told by their values, each
time, and made again from the tensors they were padded from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

MOST_PADDED = 15
"""Zeros in a row: sizes are rounded up to 8 or 16. Source: aten's pad_last_dim, attention.cpp."""


class Padded(NamedTuple):
    """What `of`, of the known tensors, becomes when it is padded.

    view: dtype, offset, shape and stride of the known one, its tokens and heads swapped if it lies
    the other way around. shape, stride: of the padded tensor.
    """

    of: str
    view: tuple[torch.dtype, int, torch.Size, tuple[int, ...]]
    shape: torch.Size
    stride: tuple[int, ...]

    def made(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The padded tensor again. storage: of the known one."""
        dtype, offset, shape, stride = self.view
        known = torch.empty(0, dtype=dtype, device=storage.device)
        known.set_(storage, offset, shape, stride)
        padded = torch.empty_strided(self.shape, self.stride, dtype=dtype, device=storage.device)
        padded[..., : shape[-1]].copy_(known)
        padded[..., shape[-1] :].zero_()
        return padded


def padded_from(tensor: torch.Tensor, known: Mapping[str, torch.Tensor]) -> Padded | None:
    """Which of the known tensors `tensor` is with zeros behind its last dimension; None if none."""
    for name, plain in known.items():
        for candidate in (plain, plain.transpose(1, 2)) if plain.dim() == 4 else (plain,):
            if _is_padded(tensor, candidate):
                offset = int(candidate.storage_offset())
                view = candidate.dtype, offset, candidate.shape, candidate.stride()
                return Padded(name, view, tensor.shape, tensor.stride())
    return None


def _is_padded(tensor: torch.Tensor, plain: torch.Tensor) -> bool:
    if tensor.dim() != plain.dim() or tensor.shape[:-1] != plain.shape[:-1]:
        return False
    size = plain.shape[-1]
    if tensor.dtype != plain.dtype or not 0 < tensor.shape[-1] - size <= MOST_PADDED:
        return False
    # By bits but for the sign of zeros, which no product that attention makes of them shows.
    return torch.equal(tensor[..., :size], plain) and not bool(tensor[..., size:].any())
