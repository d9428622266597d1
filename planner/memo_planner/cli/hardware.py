"""`memo-plan hardware`: the machines there are, and where their figures come from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from memo_planner.cli.app import app, clear_errors
from memo_planner.cli.job_options import HERE, hardware_named, overridden
from memo_planner.codec import encode
from memo_planner.hardware import FIGURES, NAMED, Hardware
from memo_planner.sizes import format_bytes


@app.command()
def hardware(
    name: Annotated[
        str | None, typer.Argument(help=f"A machine, or `{HERE}`: this one, by NVML.")
    ] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Override a figure; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the machines, or show every figure of one with its source."""
    with clear_errors():
        found = list(NAMED.values()) if name is None else [hardware_named(name)]
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
