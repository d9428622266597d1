"""`memo-plan simulate`: a plan's step on a clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from memo_planner.cli.app import app, clear_errors, plain_console
from memo_planner.copy_budget import CopyBudget
from memo_planner.errors import InvalidInput
from memo_planner.plan import Plan
from memo_planner.schedule import Speeds, StepRest, schedule_of
from memo_planner.schedule.picture import svg_text
from memo_planner.schedule.simulate import simulate as run
from memo_planner.schedule.simulation import Simulation
from memo_planner.schedule.timeline import figure_rows, summary, timeline_lines

_GB = 1e9
_TERA = 1e12


@app.command()
def simulate(
    path: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan file.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Draw streams and memory here.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the schedule here.")
    ] = None,
    link_gb_s: Annotated[
        float | None, typer.Option(help="GB/s of copies, each way; default: the plan's own.")
    ] = None,
    tflop: Annotated[
        float | None,
        typer.Option(help="Model FLOPs of a rank's pass, in 1e12, for MFU; default: the plan's."),
    ] = None,
    peak_tflop_s: Annotated[
        float | None,
        typer.Option(help="A device's peak in 1e12 FLOP/s, for MFU; default: the plan's."),
    ] = None,
) -> None:
    """Run a plan's step on a clock: step time, stalls, bytes on device and host over time."""
    with clear_errors():
        plan = Plan.load(path)
        speeds = _speeds(plan, link_gb_s, peak_tflop_s)
        rest = StepRest.of(plan)
        rest = rest if tflop is None else replace(rest, flops=tflop * _TERA)
        schedule = schedule_of(plan, budget=CopyBudget.of(plan), rest=rest)
        step = run(schedule, speeds)
        if output is not None:
            _write_output(output, lambda: schedule.save(output))
        if svg is not None:
            _write_output(svg, lambda: svg.write_text(svg_text(step), encoding="utf-8"))
    if as_json:
        typer.echo(json.dumps(summary(step), indent=1, allow_nan=False))
    else:
        _print_step(step)


def _speeds(plan: Plan, link_gb_s: float | None, peak_tflop_s: float | None) -> Speeds:
    peak = None if plan.setting is None else plan.setting.peak_flops
    peak = peak if peak_tflop_s is None else peak_tflop_s * _TERA
    speeds = Speeds.of_link(plan.profile.link, peak_flops_per_s=peak)
    if link_gb_s is None:
        return speeds
    return replace(speeds, d2h_bytes_per_s=link_gb_s * _GB, h2d_bytes_per_s=link_gb_s * _GB)


def _write_output(path: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written: {error.strerror}") from error


def _print_step(step: Simulation) -> None:
    console = plain_console()
    schedule = step.schedule
    console.print(
        f"{schedule.model}, {schedule.strategy}, {schedule.tokens:,} tokens: "
        f"{len(schedule.operations):,} operations",
        style="bold",
        markup=False,
    )
    console.print()
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in figure_rows(step):
        table.add_row(name, value)
    console.print(table)
    console.print()
    for line in timeline_lines(step):
        console.print(line, markup=False)
