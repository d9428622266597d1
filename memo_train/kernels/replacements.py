"""How a model's own modules are computed with kernels: a forward for each kind of module.

Each takes the module as `self` and falls back to the module's own way where there is no kernel for
what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memo_train.kernels.activation import gelu
from memo_train.kernels.gated import swiglu
from memo_train.kernels.launch import PACK_BYTES
from memo_train.kernels.norm import rms_norm
from memo_train.kernels.rotary import rope

Forward = Callable[..., Any]
Dtypes = frozenset[torch.dtype]


def epsilon_of(norm: nn.Module) -> float | None:
    """What a norm adds to the mean of squares, or None if it does not say."""
    for name in ("variance_epsilon", "eps"):
        if isinstance(getattr(norm, name, None), float):
            return float(getattr(norm, name))
    return None


def norm_forward(dtypes: Dtypes) -> Forward:
    """RMSNorm with `weight` and an epsilon."""

    def forward(self: Any, x: Tensor) -> Any:
        epsilon = epsilon_of(self)
        if (
            epsilon is None
            or x.dtype not in dtypes
            or x.dtype != self.weight.dtype
            or not _are_packs(x.shape[-1], x)
        ):
            return type(self).forward(self, x)
        return rms_norm(x, self.weight, epsilon)

    return forward


def gated_forward(dtypes: Dtypes) -> Forward:
    """An MLP of gate_proj, up_proj and down_proj whose gate goes through SiLU."""

    def forward(self: Any, x: Tensor) -> Any:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if gate.dtype in dtypes and up.dtype == gate.dtype and up.shape == gate.shape:
            return self.down_proj(swiglu(gate, up))
        return self.down_proj(F.silu(gate) * up)

    return forward


def gelu_forward(dtypes: Dtypes, approximate: str) -> Forward:
    """An activation that is GELU."""

    def forward(self: Any, x: Tensor) -> Any:
        return gelu(x, approximate) if x.dtype in dtypes else type(self).forward(self, x)

    return forward


def rotary_pair(dtypes: Dtypes, own: Forward) -> Forward:
    """In place of a function of q, k, cos and sin, such as Transformers' modules call."""

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **options: Any) -> Any:
        if rest or options or not (_turns(q, cos, sin, dtypes) and _turns(k, cos, sin, dtypes)):
            return own(q, k, cos, sin, *rest, **options)
        return rope(q, cos, sin), rope(k, cos, sin)

    return rotate


def rotary_one(dtypes: Dtypes, own: Forward) -> Forward:
    """In place of a function of x, cos and sin, such as `memo_train.model` calls."""

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        return rope(x, cos, sin) if _turns(x, cos, sin, dtypes) else own(x, cos, sin)

    return rotate


def with_name(function: Forward, name: str, make: Callable[[Forward], Forward]) -> Forward | None:
    """A copy of `function` in which the global `name` is make(what it was); None without it.

    The function may be wrapped by decorators that say so (`functools.wraps`): they are copied too.
    """
    if not isinstance(function, FunctionType):
        return None
    names, cells = function.__globals__, function.__closure__
    inner = getattr(function, "__wrapped__", None)
    if inner is not None:
        changed = with_name(inner, name, make)
        if changed is None or cells is None:
            return None
        cells = tuple(CellType(changed) if _holds(cell, inner) else cell for cell in cells)
        if cells == function.__closure__:
            return None
    elif name in function.__code__.co_names and callable(names.get(name)):
        names = {**names, name: make(names[name])}
    else:
        return None
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__, cells)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _holds(cell: CellType, value: object) -> bool:
    try:
        return cell.cell_contents is value
    except ValueError:  # empty
        return False


def _turns(x: Tensor, cos: Tensor, sin: Tensor, dtypes: Dtypes) -> bool:
    """Whether `rope` takes them."""
    return (
        x.dtype in dtypes
        and x.dtype == cos.dtype == sin.dtype
        and x.dim() == 4
        and cos.shape == sin.shape
        and cos.shape in ((1, *x.shape[2:]), (x.shape[0], *x.shape[2:]))
        and x.shape[-1] % 2 == 0
        and _are_packs(x.shape[-1] // 2, x)
        and not (cos.requires_grad or sin.requires_grad)
    )


def _are_packs(numbers: int, x: Tensor) -> bool:
    return numbers * x.element_size() % PACK_BYTES == 0
