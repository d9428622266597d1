"""`memo-plan show`: what a plan does with memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from memo_planner.cli.app import app, clear_errors, plain_console
from memo_planner.plan import Plan
from memo_planner.report import bar_lines, header_lines, summary, table_rows, total_lines


@app.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what each block keeps, swaps and recomputes, what that needs, and what binds."""
    with clear_errors():
        plan = Plan.load(path)
    if as_json:
        typer.echo(json.dumps(summary(plan), indent=1, allow_nan=False))
    else:
        print_plan(plan)


def print_plan(plan: Plan) -> None:
    """What the plan is for, its blocks, its totals, and device bytes over the step."""
    console = plain_console()
    for line in header_lines(plan):
        console.print(line, style="bold", markup=False)
    console.print()
    head, *rows = table_rows(plan)
    table = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, justify="left" if name in ("blocks", "x", "o") else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()
    for line in [*total_lines(plan), "", "device bytes over the step:", *bar_lines(plan)]:
        console.print(line, markup=False)
