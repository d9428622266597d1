"""A plan as people read it: runs of equal blocks, totals, and device bytes over the step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from memo_planner.codec import encode
from memo_planner.errors import format_bytes
from memo_planner.plan import Plan
from memo_planner.policy import BlockPolicy
from memo_planner.programme import Choices, StepPoint, price, shape_of, step_points

_BAR_WIDTH = 40
_MOST_ROWS = 25


@dataclass(frozen=True, kw_only=True)
class Run:
    """Neighbouring blocks `[first, last]` with one policy; bytes are of the whole run."""

    first: int
    last: int
    block: BlockPolicy
    kept_bytes: int
    swapped_bytes: int


def runs(plan: Plan) -> list[Run]:
    """The blocks of a plan, neighbours with equal policies taken together."""
    blocks = plan.policy.blocks
    prices = price(shape_of(plan.profile, plan.policy), Choices.of_blocks(blocks))
    found = []
    for block, members in groupby(range(len(blocks)), key=lambda index: blocks[index]):
        index = list(members)
        found.append(
            Run(
                first=index[0],
                last=index[-1],
                block=block,
                kept_bytes=sum(int(prices.kept_bytes[i]) for i in index),
                swapped_bytes=sum(int(prices.swapped_bytes[i]) for i in index),
            )
        )
    return found


def header_lines(plan: Plan) -> list[str]:
    """What the plan is for and what it may use."""
    profile, policy, limits = plan.profile, plan.policy, plan.limits
    return [
        *_setting_lines(plan),
        f"{profile.model} on {profile.device}: {profile.num_blocks} blocks, batch {profile.batch}, "
        f"{policy.tokens:,} tokens in {policy.num_tiles:,} tiles of {policy.tile_tokens:,}",
        f"limits: device {_limit(limits.device_bytes)}, host {_limit(limits.host_bytes)}",
    ]


def _setting_lines(plan: Plan) -> list[str]:
    setting = plan.setting
    if setting is None:
        return []
    return [
        f"strategy {setting.strategy}, {setting.gpus} devices ({setting.parallel}); all bytes are "
        f"of one rank, {setting.ranks_on_node} ranks share a node's host memory",
    ]


def table_rows(plan: Plan) -> list[tuple[str, ...]]:
    """The head and one row for each run of equal blocks."""
    head = ("blocks", "keep", "swap", "recompute", "x", "o", "kept on device", "swapped to host")
    rows = [
        (
            f"{run.first}-{run.last}" if run.first < run.last else str(run.first),
            f"{run.block.keep_tiles:,}",
            f"{run.block.swap_tiles:,}",
            f"{run.block.recompute_tiles:,}",
            run.block.x.value,
            run.block.o.value,
            format_bytes(run.kept_bytes),
            format_bytes(run.swapped_bytes),
        )
        for run in runs(plan)
    ]
    return [head, *rows]


def total_lines(plan: Plan) -> list[str]:
    """Peaks against their limits, alpha, predicted seconds and what binds."""
    told, limits = plan.prediction, plan.limits
    plain_s = told.step_forward_s + told.step_backward_s - told.extra_s
    share = f" ({told.extra_s / plain_s:.1%} of a plain step)" if plain_s > 0 else ""
    # What is left of the whole; a hair below nothing by rounding.
    overhead_s = max(0.0, told.extra_s - told.recompute_s - told.stall_s)
    return [
        f"device peak: {format_bytes(told.device_peak_bytes)} of {_limit(limits.device_bytes)}, "
        f"at {told.device_peak_point}",
        f"host peak: {format_bytes(told.host_peak_bytes)} of {_limit(limits.host_bytes)}",
        f"alpha: {plan.policy.alpha:.3f} of the tiles swapped",
        f"predicted: blocks take {told.step_forward_s:.3g} s forward, "
        f"{told.step_backward_s:.3g} s backward",
        *_job_lines(plan),
        f"predicted extra time: {told.extra_s:.3g} s{share}: {told.recompute_s:.3g} s recomputing, "
        f"{told.stall_s:.3g} s stalls, {overhead_s:.3g} s tiling "
        "and swapping",
        f"binds: {', '.join(told.binds) or 'nothing'}",
    ]


def _job_lines(plan: Plan) -> list[str]:
    setting, told = plan.setting, plan.prediction
    if setting is None:
        return []
    step_s = setting.step_s(told)
    per_gpu = setting.micro_steps * plan.policy.tokens / step_s / setting.ranks_of_sequence
    return [
        f"predicted step: {step_s:.4g} s, MFU {setting.mfu(told):.1%}, "
        f"{per_gpu:,.1f} tokens a second and device",
        f"efficiencies: {setting.efficiency}",
        f"host of a node: {format_bytes(told.host_peak_bytes * setting.ranks_on_node)}",
    ]


def bar_lines(plan: Plan) -> list[str]:
    """Device bytes at the points of the step as bars; `|` marks the limit."""
    points = _shown_points(step_points(plan.profile, plan.policy))
    limit = plan.limits.device_bytes
    # At least 1, as bars are shares of it and a plan may need nothing.
    full = max([point.device_bytes for point in points] + ([limit] if limit else [1]))
    name_width = max(len(point.name) for point in points)
    lines = []
    for point in points:
        bar = "#" * round(_BAR_WIDTH * point.device_bytes / full)
        # One more, for a limit at the very end.
        cells = list(bar.ljust(_BAR_WIDTH + 1))
        if limit:
            cells[round(_BAR_WIDTH * limit / full)] = "|"
        size = format_bytes(point.device_bytes)
        lines.append(f"{point.name:<{name_width}}  {''.join(cells)}  {size}")
    return lines


def summary(plan: Plan) -> dict[str, Any]:
    """All of the above as JSON types, bytes and seconds unrounded."""
    return {
        "model": plan.profile.model,
        "device": plan.profile.device,
        "batch": plan.profile.batch,
        "num_blocks": plan.profile.num_blocks,
        "tokens": plan.policy.tokens,
        "tile_tokens": plan.policy.tile_tokens,
        "num_tiles": plan.policy.num_tiles,
        "alpha": plan.policy.alpha,
        "limits": asdict(plan.limits),
        "runs": [encode(run) for run in runs(plan)],
        "prediction": encode(plan.prediction),
        "setting": encode(plan.setting),
        "job": _job_figures(plan),
        "points": [asdict(point) for point in step_points(plan.profile, plan.policy)],
        "inputs_hash": plan.inputs_hash,
    }


def _job_figures(plan: Plan) -> dict[str, float] | None:
    setting, told = plan.setting, plan.prediction
    if setting is None:
        return None
    return {
        "step_s": setting.step_s(told),
        "mfu": setting.mfu(told),
        "node_host_bytes": told.host_peak_bytes * setting.ranks_on_node,
    }


def _limit(limit_bytes: int | None) -> str:
    return "no limit" if limit_bytes is None else format_bytes(limit_bytes)


def _shown_points(points: list[StepPoint]) -> list[StepPoint]:
    """At most about `_MOST_ROWS` points, with the ends, the loss and the highest among them."""
    top = max(range(len(points)), key=lambda index: points[index].device_bytes)
    last = len(points) - 1
    steps = min(_MOST_ROWS - 1, last)
    # The loss is in the middle: as many points lie before it as behind.
    shown = {round(i * last / steps) for i in range(steps + 1)} | {0, last // 2, last, top}
    return [points[index] for index in sorted(shown)]
