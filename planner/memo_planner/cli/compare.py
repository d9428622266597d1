"""`memo-plan compare`: strategies side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from memo_planner.cli.app import app, clear_errors, plain_console
from memo_planner.cli.job_options import JobOptions, with_job_options
from memo_planner.sizes import format_bytes
from memo_planner.strategies import Strategy, strategy_named
from memo_planner.strategies.compare import Compared
from memo_planner.strategies.compare import compare as compared
from memo_planner.workload import format_tokens, parse_tokens

_LENGTHS = "64K,256K,512K,1M,2M,4M"
_HEAD = ("strategy", "tokens", "step", "MFU", "device peak", "host of a node", "alpha")


@app.command()
@with_job_options
def compare(
    options: JobOptions,
    seq_lens: Annotated[str, typer.Option(help="Lengths, separated by commas.")] = _LENGTHS,
    strategies: Annotated[
        str | None, typer.Option(help="Strategies, separated by commas; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Cost every strategy at every length with the same model; say what is short where."""
    with clear_errors():
        chosen = (
            list(Strategy)
            if strategies is None
            else [strategy_named(name.strip()) for name in strategies.split(",")]
        )
        lengths = [parse_tokens(text) for text in seq_lens.split(",")]
        rows = compared(options.job(lengths[0]), chosen, lengths)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False))
        return
    table = Table(box=None, pad_edge=False)
    for name in _HEAD:
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    plain_console().print(table)
    for each in chosen:
        typer.echo(f"{each.value}: {each.description}")


def _cells(row: Compared) -> tuple[str, ...]:
    start = (row.strategy, format_tokens(row.tokens))
    if row.short is not None:
        return (*start, f"no {row.short} memory", "", f"longest: {row.max_tokens:,}", "", "")
    assert row.step_s is not None, "a row that fits has its figures"
    assert row.mfu is not None, "a row that fits has its figures"
    return (
        *start,
        f"{row.step_s:.3f} s",
        f"{row.mfu:.1%}",
        format_bytes(row.device_peak_bytes or 0),
        format_bytes(row.node_host_bytes or 0),
        f"{row.alpha:.3f}",
    )
