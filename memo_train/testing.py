"""The tolerance table, and the comparisons that tests and users make with it.

    plain, exact = run_step(model, **batch), float64_step(model, **batch)
    memo_train.wrap(model)
    assert_as_exact_as_plain(run_step(model, **batch), plain, exact)

Levels (docs/design.md): moved bytes and policy changes are bitwise equal (`assert_same_bits`);
changed arithmetic, which tiling is, has at most twice plain autograd's error against float64
(`assert_as_exact_as_plain`); a short training follows plain training's loss at every step
(`assert_same_losses`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

# What sums over a model leave of an exact zero in float64.
_ROUNDING_OF_ZERO = 100 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far results in one dtype may be off.

    error_over_plain: error against float64, in units of plain autograd's: of all gradients
        together, of each parameter's, and of the loss.
    loss_rounding: relative error of a loss that rounding it to its dtype explains; allowed besides.
    training_loss: relative difference of each step's loss from plain training's, in the first 20.
    """

    error_over_plain: float
    loss_rounding: float
    training_loss: float


TOLERANCES: Mapping[torch.dtype, Tolerance] = {
    # loss_rounding is one rounding: 2**-23 and 2**-7.
    torch.float32: Tolerance(error_over_plain=2.0, loss_rounding=1.2e-7, training_loss=1e-5),
    torch.bfloat16: Tolerance(error_over_plain=2.0, loss_rounding=7.8e-3, training_loss=2e-2),
}
"""By the dtype that arithmetic runs in: the model's, or autocast's."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one forward and backward gave: the loss, and gradients by parameter name."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


def run_step(model: nn.Module, *, seed: int = 0, **batch: Any) -> Step:
    """One forward and backward of `model(**batch).loss`, from no gradients and a set seed."""
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    loss: torch.Tensor = model(**batch).loss
    loss.backward()  # type: ignore[no-untyped-call]
    return Step(loss=loss.detach(), gradients=gradients_of(model))


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the gradients that the parameters of `model` hold, by name."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def float64_step(model: nn.Module, **batch: Any) -> Step:
    """`run_step` of a float64 copy of a model that is not wrapped; dropout must be off.

    Casts to float32 inside the model (norms, softmax, loss) become casts to float64. Tables made
    without gradients (rotary angles) keep the model's own precision: they are inputs, not results.
    """
    exact = copy.deepcopy(model).double()
    with _Float64():
        return run_step(exact, **batch)


def gradient_error(step: Step, exact: Step) -> float:
    """Relative error of all gradients together: ||g - exact|| / ||exact||, in float64."""
    return _relative_error(_flat(step.gradients), _flat(exact.gradients))


def assert_same_bits(step: Step, other: Step) -> None:
    """Loss and every gradient are equal bit for bit (numerics levels 1 and 3)."""
    assert torch.equal(step.loss, other.loss), f"losses {step.loss} and {other.loss}"
    _assert_same_names(step, other)
    for name, gradient in step.gradients.items():
        unequal = int((gradient != other.gradients[name]).sum())
        assert torch.equal(gradient, other.gradients[name]), (
            f"{name}: {unequal} of {gradient.numel()} gradients differ"
        )


def assert_as_exact_as_plain(
    step: Step, plain: Step, exact: Step, *, dtype: torch.dtype = torch.float32
) -> None:
    """The errors against float64 are at most the table's multiple of plain autograd's (level 4).

    dtype: the one that arithmetic runs in. All gradients together count, each one, and the loss.
    A gradient that is zero but for float64's rounding (q and k of a single token) is all rounding
    in any other dtype too: no multiple of it means anything, so it may be up to one rounding of
    all gradients together.
    """
    _assert_same_names(step, plain)
    _assert_same_names(step, exact)
    allowed = TOLERANCES[dtype]
    steps = (step, plain, exact)
    compared = {name: tuple(s.gradients[name] for s in steps) for name in step.gradients}
    compared["all gradients"] = tuple(_flat(s.gradients) for s in steps)
    compared["loss"] = tuple(s.loss for s in steps)
    total = _flat(exact.gradients).norm()
    for name, (ours, theirs, reference) in compared.items():
        if name != "loss" and reference.norm() <= _ROUNDING_OF_ZERO * total:
            limit = torch.finfo(dtype).eps * float(total)
            assert ours.norm() <= limit, f"{name}: {ours.norm():.3g}, zero in float64"
            continue
        error, plain_error = _relative_error(ours, reference), _relative_error(theirs, reference)
        limit = allowed.error_over_plain * plain_error
        limit += allowed.loss_rounding if name == "loss" else 0.0
        assert error <= limit, (
            f"{name}: relative error against float64 is {error:.3g}, plain autograd's "
            f"{plain_error:.3g}, limit {limit:.3g}"
        )


def assert_same_losses(
    losses: Sequence[float], plain: Sequence[float], *, dtype: torch.dtype = torch.float32
) -> None:
    """Every step's loss is within the table of plain training's (level 6)."""
    assert len(losses) == len(plain), f"{len(losses)} and {len(plain)} steps"
    allowed = TOLERANCES[dtype].training_loss
    for index, (ours, theirs) in enumerate(zip(losses, plain, strict=True)):
        off = abs(ours - theirs) / abs(theirs)
        assert off <= allowed, f"step {index}: loss {ours}, plain {theirs}, off by {off:.2g}"


class _Float64(TorchFunctionMode):
    """Casts to float32 become casts to float64."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = {name: _widened(value) for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.to:
            return func(*(_widened(value) for value in args), **kwargs)
        if func is torch.Tensor.float and _is_widened(args[0]):
            return args[0].double()
        return func(*args, **kwargs)


def _is_widened(tensor: torch.Tensor) -> bool:
    # Integers (position ids) meet tables that `.to(float32)` has widened, in a matrix product
    # that takes no two dtypes.
    return tensor.requires_grad or not tensor.is_floating_point()


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _flat(gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


def _relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    difference = value.double() - exact.double()
    return float(difference.norm() / exact.double().norm().clamp_min(1e-300))


def _assert_same_names(step: Step, other: Step) -> None:
    only = step.gradients.keys() ^ other.gradients.keys()
    assert not only, f"only one of the two has gradients of {sorted(only)}"
