"""`wrap` and `unwrap`: a user's model under the runtime, and back."""

from __future__ import annotations

import math

from torch import nn

from memo_planner import Limits, Plan
from memo_train.device import Device, device_of, memory_share_bytes
from memo_train.errors import InvalidInput, UnsupportedModel
from memo_train.layout import StepLayouts
from memo_train.planning import Caps, Choices, PlannedStep, StepPlanner
from memo_train.runtime import (
    WrappedModel,
    causal_lm_of,
    configs_of,
    find_parts,
    probe_model,
    report,
    runnable,
    settled,
    without_caches,
    without_user_hooks,
)
from memo_train.stats import count
from memo_train.trace import kinds_of

GIB = 2**30
_ATTRIBUTE = "_memo_train"


def wrap(
    model: nn.Module,
    *,
    seq_len: int | None = None,
    device_gib: float | None = None,
    host_gib: float | None = None,
    alpha: float | None = None,
    tile_tokens: int | None = None,
) -> nn.Module:
    """Make `model` train by token tiles under a plan; returns the same model.

    seq_len: tokens per sequence to plan for now (batch 1); other shapes are planned when they
        first come. With it, a plan that does not fit is refused here and not in the first step.
    device_gib, host_gib: GiB of this process's device memory (everything: parameters, gradients,
        AdamW's moments, activations) and of its host pool. A `device_gib` is enforced: on the CPU
        device and where torch's own allocator serves the GPU, beyond it torch.OutOfMemoryError
        (memo-train's allocator: see `memo_train.device._cuda_memory`). host_gib defaults to half of
        this process's share of the memory (a container's limit and torchrun's other ranks on the
        machine count), device_gib to the same, on a GPU to nine tenths of the GPU's.
    alpha: the fraction of each block's tokens to swap, in [0, 1]; the rest is recomputed and x and
        o are swapped. None lets the planner choose what to keep, swap and recompute.
    tile_tokens: tokens per tile; None lets the planner choose.

    The model is trained where its parameters lie: on the CPU or on one GPU.
    Blocks that are not token-wise outside attention are checkpointed whole, with a warning.
    Raises: UnsupportedModel, UnsupportedDevice, CudaUnavailable, InvalidInput, PlanInfeasible; the
        model is then as it was.
    """
    _check_options(alpha, tile_tokens, seq_len)
    caps_bytes = _cap_bytes("device_gib", device_gib), _cap_bytes("host_gib", host_gib)
    parts = find_parts(model)
    if hasattr(parts.causal_lm, _ATTRIBUTE):
        raise UnsupportedModel("the model is wrapped already; call memo_train.unwrap(model) first")
    device = device_of(parts.causal_lm.parameters())
    choices = Choices(limits=_limits(device, *caps_bytes), alpha=alpha, tile_tokens=tile_tokens)
    lm = parts.causal_lm
    tries = runnable(lm, "on the few tokens of the probe")
    hooks = without_user_hooks(lm, parts.blocks)
    with settled(model), hooks, without_caches(configs_of(lm)), tries:
        verdicts, loss = probe_model(parts, device)
    report(parts, verdicts, loss.why_whole)
    wrapped = WrappedModel(parts, verdicts, device, loss=None if loss.why_whole else loss)
    wrapped.memory = layouts = StepLayouts(device)
    caps = Caps(device)
    planner = StepPlanner(wrapped, choices, caps, layouts)
    wrapped.install(planner.step_policy)
    try:
        with wrapped.whole(kind.index for kind in kinds_of(wrapped)):
            _plan_ahead(planner, seq_len, fits_at_all=device_gib is not None)
        # Last: a profile's runs may need more than the plan's steps.
        caps.set(*caps_bytes, parts)
    # An interrupt, too, leaves the model as it was.
    except BaseException:
        wrapped.restore()
        caps.restore()
        raise
    setattr(parts.causal_lm, _ATTRIBUTE, planner)
    count(wrapped)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Give `model` its own forwards back, and the caps that were before; returns the same model.

    Raises: UnsupportedModel if it is not wrapped.
    """
    planner = planner_of(model)
    planner.wrapped.restore()
    planner.caps.restore()
    delattr(planner.wrapped.parts.causal_lm, _ATTRIBUTE)
    return model


def plan(model: nn.Module) -> Plan:
    """The plan of a wrapped model's last training step, or of `wrap`'s seq_len before the first.

    Raises: UnsupportedModel if it is not wrapped, or no step has been planned yet.
    """
    return planned_step_of(planner_of(model)).plan


def planner_of(model: nn.Module) -> StepPlanner:
    """What plans the steps of a wrapped model. Raises: UnsupportedModel if it is not wrapped."""
    planner = getattr(causal_lm_of(model), _ATTRIBUTE, None)
    if not isinstance(planner, StepPlanner):
        raise UnsupportedModel(f"this {type(model).__name__} is not wrapped")
    return planner


def planned_step_of(planner: StepPlanner) -> PlannedStep:
    """The step planned last. Raises: UnsupportedModel if there is none yet."""
    if planner.last is None:
        raise UnsupportedModel("no step has been planned yet; pass seq_len to wrap or run a step")
    return planner.last


def _check_options(alpha: float | None, tile_tokens: int | None, seq_len: int | None) -> None:
    if alpha is not None and not (_is_number(alpha) and 0 <= alpha <= 1):
        raise InvalidInput(f"alpha must be a number between 0 and 1, got {alpha!r}")
    _check_count("tile_tokens", tile_tokens)
    _check_count("seq_len", seq_len)


def _limits(device: Device, device_bytes: int | None, host_bytes: int | None) -> Limits:
    # The cap counts what the allocator takes, the plan what tensors need.
    capped = device_bytes and max(1, device_bytes - device.rounding_bytes)
    return Limits(
        device_bytes=capped or device.default_limit_bytes,
        host_bytes=host_bytes or memory_share_bytes() // 2,
    )


def _cap_bytes(name: str, gib: float | None) -> int | None:
    if gib is None:
        return None
    if not (_is_number(gib) and math.isfinite(gib) and gib * GIB >= 1):
        raise InvalidInput(
            f"{name} must be a number of GiB above 0, got {gib!r}; None means no cap of your own"
        )
    return int(gib * GIB)


def _check_count(name: str, value: object) -> None:
    if value is not None and not (type(value) is int and value >= 1):
        raise InvalidInput(f"{name} must be a whole number of at least 1, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plan_ahead(planner: StepPlanner, seq_len: int | None, *, fits_at_all: bool) -> None:
    """Plan for seq_len; without it at least see that a cap leaves room for one tile."""
    if not planner.trains:
        return
    planner.measure(limited=fits_at_all)
    if seq_len is not None:
        planner.plan(1, seq_len)
    elif fits_at_all:
        planner.plan(1, 1)
        # Nobody asked for that step, so `plan` must not show it.
        planner.last = None
