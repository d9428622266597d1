"""`memo-plan fragmentation`: what other allocators make of a recorded step."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from memo_planner.allocators.compare import ComparisonOptions, compare_allocators
from memo_planner.allocators.run import AllocatorRun
from memo_planner.checks import LARGEST, check_number
from memo_planner.cli.app import app, clear_errors, plain_console
from memo_planner.sizes import format_bytes
from memo_planner.step_file import read_step

_GIB = 2**30
_HEAD = ("allocator", "reserved", "allocated", "fragmentation", "segments", "retries", "found by")


@app.command()
def fragmentation(
    path: Annotated[
        Path, typer.Argument(metavar="TRACE", help="A trace, or a CSV: id,lower,upper,size.")
    ],
    *,
    device_gib: Annotated[
        float | None, typer.Option(help="GiB of the device; without it no limit.")
    ] = None,
    steps: Annotated[int, typer.Option(help="How often the step is run.")] = 3,
    seconds: Annotated[float, typer.Option(help="Most for each of our layouts.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Serve a step's requests by PyTorch's allocators (simulated), glibc (measured), a layout."""
    with clear_errors():
        requests = read_step(path)
        cap_bytes = None if device_gib is None else _bytes(device_gib)
        options = ComparisonOptions(num_steps=steps, cap_bytes=cap_bytes, seconds=seconds)
        runs = compare_allocators(requests, options)
    if as_json:
        typer.echo(json.dumps([_record(run) for run in runs], indent=1, allow_nan=False))
        return
    typer.echo(
        f"{path.name}: {len(requests):,} requests, "
        f"at most {format_bytes(requests.peak_bytes())} alive at once as requested"
    )
    table = Table(box=None, pad_edge=False)
    for name in _HEAD:
        table.add_column(name, justify="left" if name in ("allocator", "found by") else "right")
    for run in runs:
        table.add_row(*_cells(run))
    plain_console().print(table)


def _bytes(device_gib: float) -> int:
    return int(check_number("--device-gib", device_gib, most=LARGEST / _GIB) * _GIB)


def _record(run: AllocatorRun) -> dict[str, Any]:
    return {**asdict(run), "fragmentation": run.fragmentation}


def _cells(run: AllocatorRun) -> tuple[str, ...]:
    sizes = (format_bytes(run.reserved_peak_bytes), format_bytes(run.allocated_peak_bytes))
    counts = (str(run.num_segments), str(run.num_retries))
    if run.is_measured:
        source, counts = "measured", ("", "")
    else:
        source = "layout" if run.allocator.startswith("layout") else "simulated"
    if run.refused_id is not None:
        return (run.allocator, *sizes, f"out at request {run.refused_id}", *counts, source)
    return (run.allocator, *sizes, f"{run.fragmentation:.2%}", *counts, source)
