"""Commands about plans: `memo-plan show, make, check, max-seq, compare, hardware`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from memo_planner.cli._app import (
    BAD_INPUT,
    HERE,
    JobOptions,
    app,
    clear_errors,
    machine_named,
    measured_machine,
    overridden,
    plain_console,
    with_job_options,
)
from memo_planner.cli._report import bar_lines, header_lines, summary, table_rows, total_lines
from memo_planner.codec import encode
from memo_planner.errors import InvalidInput, PlanInfeasible, format_bytes
from memo_planner.hardware import FIGURES, NAMED, Hardware, MachineFile
from memo_planner.plan import Plan
from memo_planner.strategies import (
    SEVERAL,
    Compared,
    Margin,
    Strategy,
    excesses,
    longest_job,
    margins,
    plan_job,
    strategy_named,
)
from memo_planner.strategies import compare as compared
from memo_planner.workload import ModelDims, format_tokens, parse_tokens

_ANY_LENGTH = 1024
"""Bytes do not depend on the length that a job is described with."""

_LENGTHS = "64K,256K,512K,1M,2M,4M"
_HEAD = ("strategy", "tokens", "step", "MFU", "device peak", "host of a node", "alpha")


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
        # A model's name may hold brackets, which rich would take for markup.
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
    """Plan a step: which bytes are kept, swapped or recomputed, what that needs, what binds."""
    with clear_errors():
        way, job = strategy_named(strategy), options.job(parse_tokens(seq_len))
        plan = plan_job(job, way)
        gains = margins(job, way, plan)
    if output is not None:
        save_plan(plan, output)
    model = job.workload.model
    if as_json:
        told = {
            **summary(plan),
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "kinds": {kind.name: kind.count for kind in model.kinds},
            "one_more_gib": [asdict(each) for each in gains],
        }
        typer.echo(json.dumps(told, indent=1, allow_nan=False))
        return
    typer.echo(_model_line(model))
    print_plan(plan)
    for each in gains:
        typer.echo(_gain_line(each))


def _model_line(model: ModelDims) -> str:
    """Such as `gpt: 7,000,000,000 parameters; 32 blocks of attention`."""
    active = model.active_parameters
    some = f", {active:,} of them active" if active < model.parameters else ""
    kinds = ", ".join(f"{kind.count} blocks of {kind.name}" for kind in model.kinds)
    return f"{model.name}: {model.parameters:,} parameters{some}; {kinds}"


def save_plan(plan: Plan, path: Path) -> None:
    """Write the plan; ends the command with a message where the file cannot be written."""
    _save(plan, path)


def _save(document: Plan | MachineFile, path: Path) -> None:
    try:
        document.save(path)
    except OSError as error:
        typer.echo(f"memo-plan: {path}: cannot be written: {error.strerror}", err=True)
        raise typer.Exit(BAD_INPUT) from error


def _gain_line(margin: Margin) -> str:
    where = "device memory of every rank" if margin.limit == "device" else "host memory of a node"
    return (
        f"one more GiB of {where}: {margin.saved_s:.3g} s less a step "
        f"({margin.saved_s_by_several:.3g} s with {SEVERAL}), {margin.more_tokens:,} tokens more"
    )


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
                # Besides the text on stderr and the exit code, which `clear_errors` sees to.
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
        # Any length would do for the job: each row sets its own.
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


@app.command()
def hardware(
    name: Annotated[
        str | None,
        typer.Argument(help=f"A machine, `{HERE}`: this one, by NVML, or a machine.json."),
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Override a figure; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine; takes seconds, needs torch.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write what was measured, for `--hardware FILE`."),
    ] = None,
) -> None:
    """List the machines, or show every figure of one with its source; or measure this one."""
    with clear_errors():
        if measure != (output is not None) or (measure and (name or figure)):
            raise InvalidInput("--measure goes with -o FILE, and neither with a name nor --figure")
    if output is not None:
        with clear_errors():
            measured = measured_machine()
        _save(measured, output)
        name = str(output)
    with clear_errors():
        found = list(NAMED.values()) if name is None else [machine_named(name)[0]]
        found = [overridden(each, figure or []) for each in found]
    if as_json:
        told = [encode(each) for each in found]
        typer.echo(json.dumps(told if name is None else told[0], indent=1, allow_nan=False))
    elif name is None:
        for each in found:
            typer.echo(_line(each))
    else:
        for text in FIGURES:
            value = _shown(text, getattr(found[0], text))
            typer.echo(f"{text:<24}{value:>20}  {found[0].source_of(text)}")
        shares = machine_named(name)[1]
        source = shares.source_on(found[0].name)
        typer.echo(f"{'linear share of peak':<24}{shares.linear:>20.3f}  {source}")
        typer.echo(f"{'attention share of peak':<24}{shares.attention:>20.3f}  {source}")


def _line(each: Hardware) -> str:
    return (
        f"{each.name:<16}{each.gpus_per_node} x {each.peak_flops / 1e12:.3g} TFLOP/s, "
        f"{format_bytes(each.device_bytes)}; host {format_bytes(each.host_usable_bytes)} usable; "
        f"link {each.d2h_loaded_bytes_per_s / 1e9:.3g} GB/s with all copying"
    )


def _shown(figure: str, value: float) -> str:
    if figure.endswith("_per_s"):
        return f"{value / 1e9:,.2f} GB/s"
    if figure.endswith("_bytes"):
        return format_bytes(value)
    return f"{value:.4g}"
