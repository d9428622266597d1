"""`memo-plan check`: does a plan, or a job, fit?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from memo_planner.cli.app import app, clear_errors
from memo_planner.cli.job_options import JobOptions, with_job_options
from memo_planner.errors import InvalidInput, PlanInfeasible
from memo_planner.plan import Plan
from memo_planner.sizes import format_bytes
from memo_planner.strategies import plan_job, strategy_named
from memo_planner.strategies.fit import excesses
from memo_planner.workload import parse_tokens


@app.command()
@with_job_options
def check(
    options: JobOptions,
    path: Annotated[
        Path | None, typer.Argument(metavar="[PLAN.json]", help="A plan file, or give --model.")
    ] = None,
    seq_len: Annotated[str | None, typer.Option(help="Tokens: 65536, 64K, 1M (binary).")] = None,
    strategy: Annotated[str, typer.Option(help="One of those of `compare`.")] = "tiles",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether a plan fits its limits (or those given here), or whether a job fits at all.

    Exits 0 if it fits, 3 if not, 2 on bad input.
    """
    with clear_errors():
        try:
            plan = _checked(options, path, seq_len, strategy)
        except PlanInfeasible as error:
            if as_json:
                typer.echo(json.dumps(_refusal(error), indent=1))
            raise
    told = plan.prediction
    if as_json:
        figures = {
            "fits": True,
            "tokens": plan.policy.tokens,
            "device_peak_bytes": told.device_peak_bytes,
            "host_peak_bytes": told.host_peak_bytes,
        }
        typer.echo(json.dumps(figures, indent=1))
        return
    typer.echo(
        f"fits: {plan.policy.tokens:,} tokens need {format_bytes(told.device_peak_bytes)} on the "
        f"device and {format_bytes(told.host_peak_bytes)} on the host, each rank"
    )


def _checked(options: JobOptions, path: Path | None, seq_len: str | None, strategy: str) -> Plan:
    """The plan that fits. Raises: PlanInfeasible; InvalidInput."""
    if path is None:
        if seq_len is None:
            raise InvalidInput("nothing to check: give a plan file, or --model and --seq-len")
        return plan_job(options.job(parse_tokens(seq_len)), strategy_named(strategy))
    if options.model is not None or seq_len is not None:
        raise InvalidInput("give a plan file or --model and --seq-len, not both")
    plan = Plan.load(path)
    ranks = 1 if plan.setting is None else plan.setting.ranks_on_node
    limits = options.limits(plan.limits, ranks)
    over = excesses(plan.prediction, limits)
    if over:
        raise PlanInfeasible(*over[0], max_tokens=None)
    return plan


def _refusal(error: PlanInfeasible) -> dict[str, object]:
    return {
        "fits": False,
        "short": error.where,
        "what": error.what,
        "need_bytes": error.need_bytes,
        "limit_bytes": error.limit_bytes,
        "short_bytes": error.need_bytes - error.limit_bytes,
        "max_tokens": error.max_tokens,
    }
