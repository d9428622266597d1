"""Which modules of a model have a kernel that may compute them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from memo_train.kernels.launch import DTYPES, PACK_BYTES
from memo_train.kernels.proof import module_differs, rotation_differs
from memo_train.kernels.replacements import (
    Dtypes,
    Forward,
    epsilon_of,
    gated_forward,
    gelu_forward,
    norm_forward,
    rotary_one,
    rotary_pair,
    with_name,
)

_ALL: Dtypes = frozenset(DTYPES)
_ROTATIONS: dict[str, tuple[Callable[[Dtypes, Forward], Forward], int]] = {
    "apply_rotary_pos_emb": (rotary_pair, 2),
    "rotate": (rotary_one, 1),
}
_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An operation that a module looks like.

    forward: the dtypes to use the kernel in -> the module's new forward, with self.
    differs: a tensor of the dtype and device to try -> why the module computes something else.
    """

    operation: str
    forward: Callable[[Dtypes], Forward]
    differs: Callable[[Tensor], str | None]


def candidates(module: nn.Module) -> list[Candidate]:
    """What the module looks like, most likely first; not proven yet."""
    name = type(module).__name__
    if name.endswith("RMSNorm"):
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and epsilon_of(module) is not None:
            return [_norm(module, weight)]
    width = getattr(getattr(module, "gate_proj", None), "in_features", None)
    if isinstance(width, int) and hasattr(module, "up_proj") and hasattr(module, "down_proj"):
        return [_of_module("swiglu", module, gated_forward, width)]
    if "GELU" in name and not any(True for _ in module.parameters()):
        ways = {"gelu": "none", "gelu_tanh": "tanh"}
        return [
            _of_module(operation, module, partial(gelu_forward, approximate=way), _WIDTH)
            for operation, way in ways.items()
        ]
    return _rotations(module)


def _norm(module: nn.Module, weight: Tensor) -> Candidate:
    norm = _of_module("rms_norm", module, norm_forward, weight.shape[0])
    if weight.shape[0] * weight.element_size() % PACK_BYTES == 0:
        return norm
    why = f"its rows of {weight.shape[0]} numbers are no multiple of {PACK_BYTES} bytes"
    return replace(norm, differs=lambda like: why)


def _of_module(
    operation: str, module: nn.Module, make: Callable[[Dtypes], Forward], width: int
) -> Candidate:
    return Candidate(
        operation=operation,
        forward=make,
        differs=lambda like: module_differs(module, make(_ALL), width, like),
    )


def _rotations(module: nn.Module) -> list[Candidate]:
    """The module's forward with the function replaced that turns heads, if it calls one."""
    forward = type(module).forward
    calls = (name for name in _ROTATIONS if with_name(forward, name, lambda own: own) is not None)
    return [_rotation(forward, name) for name in calls]


def _rotation(forward: Forward, name: str) -> Candidate:
    make, num_rotated = _ROTATIONS[name]
    own = inspect.unwrap(forward).__globals__[name]

    def turned(dtypes: Dtypes) -> Forward:
        changed = with_name(forward, name, lambda own: make(dtypes, own))
        assert changed is not None, name
        return changed

    return Candidate(
        operation="rope",
        forward=turned,
        differs=lambda like: rotation_differs(own, make(_ALL, own), num_rotated, like),
    )
