"""Which modules of a model a kernel may compute: recognised, then proved on random numbers.

Each replacement is a forward that takes the module as `self`, and falls back to the module's own
way where there is no kernel for what it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import CellType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memo_train.kernels._activation import gelu
from memo_train.kernels._gated import swiglu
from memo_train.kernels._launch import DTYPES, PACK_BYTES
from memo_train.kernels._norm import rms_norm
from memo_train.kernels._rotary import rope

Forward = Callable[..., Any]
Dtypes = frozenset[torch.dtype]

# What modules raise for an input that they cannot take.
NOT_RUNNABLE = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError)
# Small numbers show another epsilon, large ones another activation.
_SCALES = (0.1, 1.0, 100.0)
# Of bf16 and fp16 four roundings (2**-7 and 2**-10).
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
_TOKENS, _HEADS, _HEAD_DIM = 3, 4, 32

_ALL: Dtypes = frozenset(DTYPES)
_WIDTH = 64


def module_differs(
    module: nn.Module, forward: Callable[..., Any], width: int, like: Tensor
) -> str | None:
    """Why `forward(module, x)` is not module.forward(x) for x [1, tokens, width], in training mode.

    like: a tensor of the dtype and on the device to try. None if nothing is seen to differ.
    """
    modes = [(each, each.training) for each in module.modules()]
    module.train()  # shows dropout
    try:
        tries = [(_random((1, _TOKENS, width), like, scale),) for scale in _SCALES]
        return _differs(module.forward, lambda x: forward(module, x), tries, like)
    finally:
        for each, is_training in modes:
            each.training = is_training


def rotation_differs(
    own: Callable[..., Any], ours: Callable[..., Any], num_rotated: int, like: Tensor
) -> str | None:
    """Why two functions of (q, k, cos, sin), or with `num_rotated` 1 of (x, cos, sin), differ."""
    angles = torch.cat([_random((1, _TOKENS, _HEAD_DIM // 2), like, 1.0)] * 2, dim=-1)
    heads = [
        _random((2, _HEADS, _TOKENS, _HEAD_DIM), like, 1.0),
        # k with fewer heads than q, as grouped-query attention has it.
        _random((2, 2, _TOKENS, _HEAD_DIM), like, 1.0),
    ]
    return _differs(own, ours, [(*heads[:num_rotated], angles.cos(), angles.sin())], like)


def _differs(
    own: Callable[..., Any],
    ours: Callable[..., Any],
    tries: Sequence[tuple[Tensor, ...]],
    like: Tensor,
) -> str | None:
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        # Dropout draws: the random numbers of the user's training must not move on.
        with torch.no_grad(), torch.random.fork_rng(devices):
            errors = [_error(own(*args), ours(*args)) for args in tries]
    except NOT_RUNNABLE as error:
        return f"it does not run on random numbers ({error})"
    if max(errors) > _TOLERANCE[like.dtype]:
        return f"it computes something else: its results are {max(errors):.2g} away"
    return None


def _error(own: Any, ours: Any) -> float:
    """The largest difference over the largest number; infinite where only one is finite."""
    pairs = list(zip(_tensors(own), _tensors(ours), strict=True))
    return max(_relative(a.double(), b.double()) for a, b in pairs)


def _relative(own: Tensor, ours: Tensor) -> float:
    finite = own.isfinite()
    if own.shape != ours.shape or not torch.equal(finite, ours.isfinite()):
        return float("inf")
    own, ours = own.where(finite, torch.zeros_like(own)), ours.where(finite, torch.zeros_like(ours))
    # No division by zero where all is zero.
    return float((own - ours).abs().max() / own.abs().max().clamp_min(1e-30))


def _tensors(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def _random(shape: tuple[int, ...], like: Tensor, scale: float) -> Tensor:
    # On the CPU: the same numbers whatever the device.
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(shape, generator=generator)).to(like.device, like.dtype)


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
        # A copy of the globals: other models of the same file keep the function that was there.
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


_ROTATIONS: dict[str, tuple[Callable[[Dtypes, Forward], Forward], int]] = {
    "apply_rotary_pos_emb": (rotary_pair, 2),
    "rotate": (rotary_one, 1),
}


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
    # A class with parameters of its own computes more than GELU.
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
