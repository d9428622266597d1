"""`use`: a model's own modules computed with kernels, and back."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Literal

import torch
from torch import Tensor, nn

from memo_train.errors import InvalidInput, UnsupportedModel
from memo_train.kernels._launch import DTYPES, is_built
from memo_train.kernels._peers import OPERATIONS
from memo_train.kernels._replacements import Candidate, candidates
from memo_train.kernels._timings import Faster, device_name, faster_on, load_timings, timings_path
from memo_train.wrap import planner_of

_MARK = "memo_train_operation"
_ALL: Faster = {operation: frozenset(DTYPES) for operation in OPERATIONS}


@dataclass(frozen=True, kw_only=True)
class UsedKernels:
    """What `use` did, by names of modules.

    used: the operation whose kernel computes it. left: why a module runs as before.
    """

    used: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name}: {operation}" for name, operation in self.used.items()]
        lines += [f"{name}: as before, {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def use(model: nn.Module, kernels: Literal["auto"] | bool = "auto") -> UsedKernels:
    """Compute RMSNorm, SwiGLU, GELU and rotary positions of `model` with the fused kernels.

    Call it before `memo_train.wrap`, which then measures and plans with them.

    kernels: "auto" takes those that were faster than torch's ways on the model's device when
        `python -m memo_train.kernels.benchmark` ran there, none where it has not and none on the
        CPU; True takes all; False gives every module its own forward back.

    Modules are recognised by what they have (an RMSNorm by its name, weight and epsilon; an MLP by
    gate_proj, up_proj and down_proj; a GELU by its name; rotary positions by the function that the
    module calls) and only taken if the kernel computes the same on random numbers. A call that
    there is no kernel for (another dtype, rows that are no multiples of 16 bytes) runs as before.
    Results differ by rounding: the kernels compute in fp32 and round once.

    Raises:
        UnsupportedModel: the model is wrapped, or has no floating-point parameters.
        InvalidInput: another value of `kernels`, or a file of timings that cannot be read.
        CudaUnavailable: True, and memo-train was built without its kernels.
    """
    if kernels not in ("auto", True, False):
        raise InvalidInput(f'kernels must be "auto", True or False, got {kernels!r}')
    _check_not_wrapped(model)
    # First, so that a second call judges the modules' own forwards.
    _give_back(model)
    done = UsedKernels(used={}, left={})
    if kernels is False:
        return done
    like = _first_float(model)
    if like is None:
        raise UnsupportedModel(f"{type(model).__name__} has no floating-point parameters")
    faster, why_not = (_ALL, "") if kernels is True else _choice(like.device)
    for name, module in model.named_modules():
        for candidate in candidates(module):
            dtypes = faster.get(candidate.operation, frozenset())
            why = _why_not(module, candidate, like) if dtypes else why_not
            if why is None:
                _replace(module, candidate, dtypes)
                done.used[name] = candidate.operation
                # Another candidate (the other GELU) may have been refused before.
                done.left.pop(name, None)
                break
            done.left[name] = why
    return done


def _check_not_wrapped(model: nn.Module) -> None:
    try:
        planner_of(model)
    except UnsupportedModel:
        return
    raise UnsupportedModel(
        "the model is wrapped, and its plan was made for the forwards it has; call "
        "memo_train.unwrap(model), then kernels.use(model), then wrap"
    )


def _give_back(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module.__dict__.get("forward"), _MARK):
            del module.forward


def _choice(device: torch.device) -> tuple[Faster, str]:
    """The dtypes in which each operation's kernel is to be used, and why others are not."""
    name, timings = device_name(device), load_timings(timings_path())
    if name == "cpu":
        return {}, "on the CPU the kernels' code is a reference and not used by itself"
    if not is_built():
        return {}, "memo-train was built without its kernels"
    if all(timing.device != name for timing in timings):
        return {}, f"not timed on {name}; run python -m memo_train.kernels.benchmark"
    return faster_on(name, timings), f"torch was faster on {name}"


def _why_not(module: nn.Module, candidate: Candidate, like: Tensor) -> str | None:
    own = _first_float(module)
    like = like if own is None else own
    if "forward" in module.__dict__:
        return "its forward has been replaced by others"
    if like.dtype not in DTYPES:
        return f"there is no kernel for {like.dtype}"
    return candidate.differs(like)


def _replace(module: nn.Module, candidate: Candidate, dtypes: frozenset[torch.dtype]) -> None:
    forward = candidate.forward(dtypes)
    setattr(forward, _MARK, candidate.operation)
    module.forward = MethodType(forward, module)  # a deepcopy binds it to the copy


def _first_float(module: nn.Module) -> Tensor | None:
    return next((p for p in module.parameters() if p.is_floating_point()), None)
