"""What each operation competes with: torch's own ways to compute the same, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from memo_train.kernels._activation import gelu
from memo_train.kernels._gated import swiglu
from memo_train.kernels._norm import rms_norm
from memo_train.kernels._rotary import rope

EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the tensors to compute on; ffn is the width of the MLP's hidden layer."""

    tokens: int
    hidden: int
    ffn: int
    heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True)
class Peers:
    """One operation. The first `num_differentiated` shapes are of inputs with gradients.

    shapes: sizes -> the inputs' shapes. kernel, torchs: the inputs -> the result.
    """

    shapes: Callable[[Sizes], tuple[tuple[int, ...], ...]]
    kernel: Callable[..., Tensor]
    torchs: tuple[Callable[..., Tensor], ...]
    num_differentiated: int


def _rms_norm_by_steps(x: Tensor, weight: Tensor) -> Tensor:
    """As Transformers' Llama computes it."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return weight * scaled.to(x.dtype)


def _rms_norm_by_torch(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPSILON)


def _rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned: Tensor = rope(x.transpose(1, 2), cos, sin)
    return turned


def _rope_by_steps(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.transpose(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


OPERATIONS: Mapping[str, Peers] = {
    "rms_norm": Peers(
        shapes=lambda s: ((1, s.tokens, s.hidden), (s.hidden,)),
        kernel=lambda x, weight: rms_norm(x, weight, EPSILON),
        torchs=(_rms_norm_by_steps, _rms_norm_by_torch),
        num_differentiated=2,
    ),
    "swiglu": Peers(
        shapes=lambda s: ((1, s.tokens, s.ffn),) * 2,
        kernel=swiglu,
        torchs=(lambda gate, up: F.silu(gate) * up,),
        num_differentiated=2,
    ),
    "gelu": Peers(
        shapes=lambda s: ((1, s.tokens, s.ffn),),
        kernel=gelu,
        torchs=(F.gelu,),
        num_differentiated=1,
    ),
    "gelu_tanh": Peers(
        shapes=lambda s: ((1, s.tokens, s.ffn),),
        kernel=lambda x: gelu(x, "tanh"),
        torchs=(partial(F.gelu, approximate="tanh"),),
        num_differentiated=1,
    ),
    "rope": Peers(
        shapes=lambda s: ((1, s.tokens, s.heads, s.head_dim), *((s.tokens, s.head_dim),) * 2),
        kernel=_rope,
        torchs=(_rope_by_steps,),
        num_differentiated=1,
    ),
}
"""By the names that `memo_train.kernels.use` gives."""
