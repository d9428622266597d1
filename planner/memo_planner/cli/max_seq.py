"""`memo-plan max-seq`: the longest sequence that fits."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from memo_planner.cli.app import app, clear_errors
from memo_planner.cli.job_options import JobOptions, with_job_options
from memo_planner.strategies import Strategy, longest_job, strategy_named

_ANY_LENGTH = 1024
"""Bytes do not depend on the length that a job is described with."""


@app.command()
@with_job_options
def max_seq(
    options: JobOptions,
    strategy: Annotated[
        str | None, typer.Option(help="One of those of `compare`; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the longest sequence, in tokens, that each strategy fits."""
    with clear_errors():
        chosen = list(Strategy) if strategy is None else [strategy_named(strategy)]
        job = options.job(_ANY_LENGTH)
        found = {each.value: longest_job(job, each) for each in chosen}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, tokens in found.items():
        typer.echo(f"{name:<20}{tokens:>14,} tokens ({tokens / 1024:,.0f}K)")
