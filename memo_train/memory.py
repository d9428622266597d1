"""What becomes of device memory in a wrapped model's steps: layouts on and off, report, files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from memo_planner import Plan
from memo_planner.errors import format_bytes
from memo_train.device import devices_in_use
from memo_train.job_plans import plan_of_job, refuse_differences
from memo_train.layout import PlanLayout, Shape, ShapeReport, StepLayouts
from memo_train.planning import StepPlanner
from memo_train.stats import counted
from memo_train.trace import model_hash
from memo_train.wrap import planned_step_of, planner_of


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """How a model's steps used the device's memory; `print` it.

    shapes: a report for each shape of step. device_used_bytes, device_peak_bytes: of everything in
    the process, as in `stats`, or on the model's device. high_water_bytes: what a cap limits: most
    bytes outside the largest hole, on a GPU most bytes reserved; what it has above the peak is lost
    to holes and to the planned range's own rest. why_no_layouts: as in `Device`.
    """

    shapes: tuple[ShapeReport, ...]
    device_used_bytes: int
    device_peak_bytes: int
    high_water_bytes: int
    why_no_layouts: str

    def __str__(self) -> str:
        lines = [
            f"device memory: {format_bytes(self.device_used_bytes)} in use, peak "
            f"{format_bytes(self.device_peak_bytes)}, highest end "
            f"{format_bytes(self.high_water_bytes)}"
        ]
        if self.why_no_layouts:
            lines.append(f"no planned addresses: {self.why_no_layouts}")
        return "\n".join([*lines, *map(str, self.shapes)])


def memory_report(model: nn.Module | None = None) -> MemoryReport:
    """Layouts of a wrapped model's steps: peak, bound, planned and unplanned requests.

    Without a model: of all that were wrapped in this process and still live. Waits for layouts that
    are being solved. Raises: UnsupportedModel if the model is not wrapped.
    """
    wrapped = counted() if model is None else (planner_of(model).wrapped,)
    layouts = [w.memory for w in wrapped if isinstance(w.memory, StepLayouts)]
    for each in layouts:
        each.wait()
    devices = devices_in_use() if model is None else tuple(w.device for w in wrapped)
    counters = [device.counters() for device in devices]
    return MemoryReport(
        shapes=tuple(report for each in layouts for report in each.reports()),
        device_used_bytes=sum(c.device_used_bytes for c in counters),
        device_peak_bytes=sum(c.device_peak_bytes for c in counters),
        high_water_bytes=sum(c.device_high_water_bytes for c in counters),
        why_no_layouts="; ".join(dict.fromkeys(filter(None, (d.why_no_layouts for d in devices)))),
    )


def use_layouts(model: nn.Module, on: bool) -> None:
    """Whether later steps of a wrapped model get planned addresses; on by default.

    Changes addresses, never results. Raises: UnsupportedModel if it is not wrapped.
    """
    planner_of(model).layouts.on = on


def save_plan(model: nn.Module, path: str | Path, *, wait: bool = True) -> None:
    """Write the plan of the step planned last, and its layout beside it (`.layout.json`).

    wait: whether for a layout that is being solved; else the file says that there is none.
    Raises: UnsupportedModel; OSError.
    """
    planner = planner_of(model)
    planned = planned_step_of(planner)
    if wait:
        planner.layouts.wait()
    beside = PlanLayout(
        plan_hash=planned.plan.inputs_hash,
        precision=planned.shape.precision,
        training=planner.wrapped.parts.causal_lm.training,
        park_pre=planned.step.copies.park_pre,
        given=planner.wrapped.given,
        solved=planner.layouts.solved(
            planned.shape, planner.wrapped.how(planned.step, planner.wrapped.given)
        ),
    )
    planned.plan.save(path)
    beside.save(_beside(Path(path)))


def load_plan(model: nn.Module, path: str | Path) -> Plan:
    """Run steps of the plan's shape by a plan of `save_plan` or of `memo-plan`, from the first on.

    Ranks that share sequences all call it, with the same plan; it is a collective call then. A plan
    of `memo-plan make -o` is of a whole job: each rank carries out its part of it, or all refuse.
    Returns the plan as this rank carries it out, its tokens the rank's own.
    Raises: UnsupportedModel if the model is not wrapped; PlanFileError if the files cannot be read
        or are for another model, precision or job, with both values named; RanksDiffer.
    """
    planner = planner_of(model)
    found: list[_Loaded] = []

    def look() -> tuple[dict[str, Any], None]:
        found.append(_read(planner, Path(path)))
        return {"the plan": found[0].plan.inputs_hash}, None

    planner.agree(look)
    plan, beside = found[0].plan, found[0].beside
    shape = Shape(
        batch=plan.profile.batch,
        tokens=plan.policy.tokens,
        precision=planner.precision if beside is None else beside.precision,
    )
    park_pre = beside is not None and beside.park_pre
    planned = planner.adopt(shape, plan, park_pre=park_pre)
    if beside is not None and beside.solved is not None:
        how = planner.wrapped.how(planned.step, beside.given)
        planner.layouts.adopt(shape, how, beside.solved)
    return plan


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A plan that fits the model. beside: its layout's file; a plan of a job has none."""

    plan: Plan
    beside: PlanLayout | None


def _read(planner: StepPlanner, path: Path) -> _Loaded:
    """Raises: PlanFileError."""
    plan, wrapped = Plan.load(path), planner.wrapped
    if plan.setting is not None:
        return _Loaded(plan=plan_of_job(plan, planner, path), beside=None)
    device = wrapped.device
    found = PlanLayout.load(_beside(path), plan_hash=plan.inputs_hash, device=device)
    causal_lm, exchange = wrapped.parts.causal_lm, plan.profile.exchange
    wanted = {
        "model_hash": (plan.profile.model_hash, model_hash(causal_lm)),
        "device": (plan.profile.device, device.torch_device.type),
        "num_blocks": (plan.profile.num_blocks, len(wrapped.parts.blocks)),
        "precision": (found.precision, planner.precision),
        "training": (found.training, causal_lm.training),
        "exchange.way": (exchange and exchange.way, wrapped.ranks and wrapped.ranks.way),
    }
    refuse_differences(path, wanted)
    return _Loaded(plan=plan, beside=found)


def _beside(path: Path) -> Path:
    return path.with_suffix(".layout.json")
