"""`verify`: one wrapped step beside the same step of the plain model, on a user's own batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memo_planner.errors import format_bytes
from memo_train.device import Device
from memo_train.errors import InvalidInput, UnsupportedModel, VerificationFailed
from memo_train.planning import StepPlanner
from memo_train.runtime import kept_gradients, kept_model, preserved_rng
from memo_train.trace import OPTIMIZER_STATES
from memo_train.wrap import planned_step_of, planner_of

_ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""||wrapped - plain|| / ||plain||, by the dtype of arithmetic. Tiling sums in another order: seen
are 1e-6 in float32 and 1e-2 in bfloat16; a gradient that is wrong is off by far more."""

_SHOWN_ROWS = 8


@dataclass(frozen=True, kw_only=True)
class GradientRow:
    """One parameter: its gradient's norm in the plain step, and how far the wrapped one is off.

    error: ||wrapped - plain|| / ||plain||; None where only one of the steps gave a gradient.
    """

    name: str
    plain_norm: float
    error: float | None


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What one forward and backward took: seconds, of those the ones stalled, and peak bytes.

    device_peak_bytes: parameters, buffers and all that the step added to them at its peak.
    """

    loss: float
    seconds: float
    stall_s: float
    device_peak_bytes: int
    host_peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A step plain and wrapped; `print` it. `planned_*`: the plan's figures for what was measured.

    planned_peak_bytes leaves out the optimiser's moments, which no step of `verify` makes.
    """

    plain: StepFigures
    wrapped: StepFigures
    rows: tuple[GradientRow, ...]
    faults: tuple[str, ...]
    allowed_error: float
    planned_peak_bytes: int
    planned_host_bytes: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        a, b = self.plain, self.wrapped
        lines = [
            f"{'':24}{'plain':>14}{'wrapped':>14}{'plan':>14}",
            f"{'loss':24}{a.loss:>14.6g}{b.loss:>14.6g}",
            f"{'seconds':24}{a.seconds:>14.3f}{b.seconds:>14.3f}",
            f"{'of these stalled':24}{a.stall_s:>14.3f}{b.stall_s:>14.3f}",
            _bytes_line("device peak", a.device_peak_bytes, b.device_peak_bytes)
            + f"{format_bytes(self.planned_peak_bytes):>14}",
            _bytes_line("host peak", a.host_peak_bytes, b.host_peak_bytes)
            + f"{format_bytes(self.planned_host_bytes):>14}",
            "",
            f"gradients of {len(self.rows)} parameters, ||wrapped - plain|| / ||plain||, at most "
            f"{self.allowed_error:.0e} allowed; the largest:",
        ]
        ranked = sorted(
            self.rows, key=lambda row: -(float("inf") if row.error is None else row.error)
        )
        lines += [_row_line(row) for row in ranked[:_SHOWN_ROWS]]
        return "\n".join([*lines, *self.notes, *(f"FAULT: {fault}" for fault in self.faults)])


def verify(model: nn.Module, batch: Mapping[str, Any], *, steps: int = 2) -> Verification:
    """Run `model(**batch)` and its backward plain and under the runtime, and compare them.

    model: wrapped, or around a wrapped one (PEFT, say); its gradients, buffers and random numbers
    are left as they were, and no optimiser is asked to step. batch: the forward's arguments, labels
    included. steps: how often each is run; the last is the one compared, so that the first may
    plan. Dropout is off: by tiles it draws other numbers, which are as good but not the same.
    The plain step is free of the caps of `wrap`, but the machine must have memory for it.

    Raises: VerificationFailed, whose `verification` has all figures, if a loss or a gradient is
        off, missing, or there where the plain step has none; UnsupportedModel; InvalidInput.
    """
    if type(steps) is not int or steps < 1:
        raise InvalidInput(f"steps must be a whole number of at least 1, got {steps!r}")
    planner = planner_of(model)
    if planner.wrapped.ranks is not None:
        raise UnsupportedModel(
            "the plain step of one rank's tokens is not what ranks that share them compute; verify "
            "the model wrapped without mesh, on a sequence that one process holds"
        )
    device, parts = planner.wrapped.device, planner.wrapped.parts
    with (
        preserved_rng(device.generators),
        kept_model(parts.causal_lm, parts.blocks),
        kept_gradients(model),
        _without_dropout(model) as notes,
    ):
        with planner.wrapped.plain(), _uncapped(device):
            plain, expected = _last_step(model, batch, device, steps)
        wrapped, found = _last_step(model, batch, device, steps)
    result = _compared(planner, (plain, wrapped), (expected, found), notes)
    if result.faults:
        raise VerificationFailed(result)
    return result


_Gradients = dict[str, torch.Tensor]


def _last_step(
    model: nn.Module, batch: Mapping[str, Any], device: Device, steps: int
) -> tuple[StepFigures, _Gradients]:
    """The figures and gradients of the last of `steps`, all from the same random numbers."""
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        with preserved_rng(device.generators):
            figures = _step(model, batch, device)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return figures, gradients


def _step(model: nn.Module, batch: Mapping[str, Any], device: Device) -> StepFigures:
    device.reset_peak()
    before, started_s = device.counters(), device.now()
    with torch.enable_grad():
        output = model(**batch)
        loss = output[0] if isinstance(output, tuple) else output.loss
        if not isinstance(loss, torch.Tensor):
            raise InvalidInput("the batch gives no loss; verify needs `labels` in it")
        loss.backward()  # type: ignore[no-untyped-call]
    seconds, after = device.now() - started_s, device.counters()
    here = device.torch_device
    resident = sum(t.nbytes for t in (*model.parameters(), *model.buffers()) if t.device == here)
    return StepFigures(
        loss=float(loss.detach()),
        seconds=seconds,
        stall_s=after.stall_s - before.stall_s,
        # Without what others have in use, but with the model, which was there before.
        device_peak_bytes=resident + after.device_peak_bytes - before.device_used_bytes,
        host_peak_bytes=after.host_peak_bytes,
    )


def _compared(
    planner: StepPlanner,
    figures: tuple[StepFigures, StepFigures],
    gradients: tuple[_Gradients, _Gradients],
    notes: tuple[str, ...],
) -> Verification:
    plain, wrapped = figures
    allowed = _ALLOWED.get(_arithmetic_dtype(planner), _ALLOWED[torch.bfloat16])
    rows, faults = _compare_gradients(*gradients, allowed)
    if abs(wrapped.loss - plain.loss) > allowed * max(abs(plain.loss), 1.0):
        faults.insert(0, f"loss is {wrapped.loss:.6g} wrapped, {plain.loss:.6g} plain")
    prediction = planned_step_of(planner).plan.prediction
    trained = [p for p in planner.wrapped.parts.causal_lm.parameters() if p.requires_grad]
    moments_bytes = OPTIMIZER_STATES * sum(p.nbytes for p in trained)
    return Verification(
        plain=plain,
        wrapped=wrapped,
        rows=tuple(rows),
        faults=tuple(faults),
        allowed_error=allowed,
        planned_peak_bytes=prediction.device_peak_bytes - moments_bytes,
        planned_host_bytes=prediction.host_peak_bytes,
        notes=notes,
    )


def _compare_gradients(
    plain: _Gradients, wrapped: _Gradients, allowed: float
) -> tuple[list[GradientRow], list[str]]:
    total = sum(float(g.double().norm()) ** 2 for g in plain.values()) ** 0.5
    # A gradient that is zero but for rounding (keys' biases) is all rounding in both steps.
    floor = allowed * 1e-2 * total
    rows, faults = [], []
    for name in dict.fromkeys((*plain, *wrapped)):
        expected, found = plain.get(name), wrapped.get(name)
        norm = 0.0 if expected is None else float(expected.double().norm())
        if expected is None or found is None:
            rows.append(GradientRow(name=name, plain_norm=norm, error=None))
            which = ("plain", "wrapped") if found is None else ("wrapped", "plain")
            faults.append(f"{name}: a gradient in the {which[0]} step, none in the {which[1]} one")
            continue
        off = float((found.double() - expected.double()).norm())
        rows.append(GradientRow(name=name, plain_norm=norm, error=off / max(norm, 1e-300)))
        if not off <= allowed * norm + floor:  # also when it is not a number
            faults.append(f"{name}: off by {off / max(norm, 1e-300):.2g}, allowed {allowed:.0e}")
    return rows, faults


def _arithmetic_dtype(planner: StepPlanner) -> torch.dtype:
    """The coarsest dtype a step computes in: autocast's, or the parameters'."""
    found = {p.dtype for p in planner.wrapped.parts.causal_lm.parameters()}
    kind = planner.wrapped.device.torch_device.type
    if torch.is_autocast_enabled(kind):
        found.add(torch.get_autocast_dtype(kind))
    return max(found & _ALLOWED.keys(), key=lambda dtype: _ALLOWED[dtype], default=torch.float32)


@contextmanager
def _uncapped(device: Device) -> Iterator[None]:
    cap_bytes = device.counters().device_cap_bytes
    device.set_device_cap(None)
    try:
        yield
    finally:
        device.set_device_cap(cap_bytes)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Dropout's probabilities are 0 while active; yields what a report should say of it.

    They are numbers on modules, called `p`, `attention_dropout`, `attn_pdrop` and the like.
    """
    found = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float)
        and value > 0
        and ("drop" in name or (name == "p" and isinstance(module, nn.modules.dropout._DropoutNd)))
    ]
    for module, name, _ in found:
        setattr(module, name, 0.0)
    try:
        yield ("dropout was off for both steps",) if found and model.training else ()
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def _bytes_line(name: str, plain: int, wrapped: int) -> str:
    return f"{name:24}{format_bytes(plain):>14}{format_bytes(wrapped):>14}"


def _row_line(row: GradientRow) -> str:
    error = "only in one" if row.error is None else f"{row.error:.1e}"
    return f"  {row.name:56} norm {row.plain_norm:9.3g}   off {error}"
