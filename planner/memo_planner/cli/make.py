"""`memo-plan make`: the fastest plan that fits, from a model's name and a machine's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from memo_planner.cli.app import BAD_INPUT, app, clear_errors
from memo_planner.cli.job_options import JobOptions, with_job_options
from memo_planner.cli.show import print_plan
from memo_planner.plan import Plan
from memo_planner.report import summary
from memo_planner.strategies import plan_job, strategy_named
from memo_planner.strategies.margins import SEVERAL, Margin, margins
from memo_planner.workload import parse_tokens


@app.command()
@with_job_options
def make(
    options: JobOptions,
    seq_len: Annotated[str, typer.Option(help="Tokens of a sequence: 65536, 64K, 1M (binary).")],
    strategy: Annotated[str, typer.Option(help="One of those of `compare`.")] = "tiles",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan to this file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Plan a step: which bytes stay, move or are computed again, what that needs, what binds."""
    with clear_errors():
        way, job = strategy_named(strategy), options.job(parse_tokens(seq_len))
        plan = plan_job(job, way)
        gains = margins(job, way, plan)
    if output is not None:
        save_plan(plan, output)
    if as_json:
        told = {**summary(plan), "one_more_gib": [asdict(each) for each in gains]}
        typer.echo(json.dumps(told, indent=1, allow_nan=False))
        return
    print_plan(plan)
    for each in gains:
        typer.echo(_gain_line(each))


def save_plan(plan: Plan, path: Path) -> None:
    """Write the plan; ends the command with a message where the file cannot be written."""
    try:
        plan.save(path)
    except OSError as error:
        typer.echo(f"memo-plan: {path}: cannot be written: {error.strerror}", err=True)
        raise typer.Exit(BAD_INPUT) from error


def _gain_line(margin: Margin) -> str:
    where = "device memory of every rank" if margin.limit == "device" else "host memory of a node"
    return (
        f"one more GiB of {where}: {margin.saved_s:.3g} s less a step "
        f"({margin.saved_s_by_several:.3g} s with {SEVERAL}), {margin.more_tokens:,} tokens more"
    )
