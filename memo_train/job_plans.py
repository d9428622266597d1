"""A plan made for a whole job, without the model at hand, against the ranks that run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from memo_planner import InvalidInput, Place, Plan
from memo_planner.errors import PlanFileError, format_bytes
from memo_planner.plan import Setting
from memo_planner.strategies import rank_plan
from memo_train.planning import StepPlanner


def refuse_differences(path: Path, wanted: Mapping[str, tuple[object, object]]) -> None:
    """wanted: by field what the plan says and what is here. Raises: PlanFileError at the first."""
    for name, (given, here) in wanted.items():
        if given != here:
            raise PlanFileError(f"{path}: {name} is {given!r}, this model's is {here!r}")


def plan_of_job(plan: Plan, planner: StepPlanner, path: Path) -> Plan:
    """A rank's part of `plan`, which has a setting.

    Raises: PlanFileError naming the first field in which the job differs from what is here.
    """
    setting = plan.setting
    assert setting is not None
    refuse_differences(path, _of_job(setting, planner))
    _refuse_attention_again(plan, path)
    try:
        mine = rank_plan(plan)
    except InvalidInput as error:
        raise PlanFileError(f"{path}: {error}") from error
    refuse_differences(path, _of_model(mine, setting, planner))
    _refuse_less_memory(plan, planner, path)
    return mine


def _of_job(setting: Setting, planner: StepPlanner) -> dict[str, tuple[object, object]]:
    """Who runs it, by the setting's fields."""
    ranks = planner.wrapped.ranks
    ring, degree = (1, 1) if ranks is None else (ranks.num_ring_ranks, ranks.num_ranks)
    gpus = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return {
        "setting.strategy": (setting.strategy, "tiles"),
        "setting.gpus": (setting.gpus, gpus),
        "setting.tensor": (setting.tensor, 1),
        "setting.context": (setting.context, ring),
        "setting.sequence": (setting.sequence, degree // ring),
        "setting.zero_stage": (setting.zero_stage, planner.state.zero_stage),
    }


def _of_model(
    plan: Plan, setting: Setting, planner: StepPlanner
) -> dict[str, tuple[object, object]]:
    """What is trained, as far as a job's profile knows it."""
    parts = planner.wrapped.parts
    # ZeRO 3 leaves parameters without numbers of their own.
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in parts.causal_lm.parameters())
    return {
        "setting.parameters": (setting.parameters, parameters),
        "profile.num_blocks": (plan.profile.num_blocks, len(parts.blocks)),
        "profile.x_bytes_per_token": (
            round(plan.profile.x_bytes_per_token),
            round(plan.profile.batch * parts.hidden_bytes),
        ),
    }


def _refuse_attention_again(plan: Plan, path: Path) -> None:
    again = [i for i, block in enumerate(plan.policy.blocks) if block.o is Place.RECOMPUTE]
    if again:
        raise PlanFileError(
            f"{path}: policy.blocks[{again[0]}].o is 'recompute', and plans of a job are carried "
            "out with attention run once; make the plan with --attention-once"
        )


def _refuse_less_memory(plan: Plan, planner: StepPlanner, path: Path) -> None:
    """A plan fills its limits, so less than these would not do."""
    for name in ("device_bytes", "host_bytes"):
        planned, here = getattr(plan.limits, name), getattr(planner.limits, name)
        if here is not None and (planned is None or planned > here):
            shown = "no limit" if planned is None else format_bytes(planned)
            raise PlanFileError(
                f"{path}: limits.{name} is {shown}, this rank has {format_bytes(here)}; give wrap "
                f"more {name.split('_')[0]}_gib, or make the plan with as much"
            )
