"""`memo-plan pack`: offsets for the buffers of a CSV file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from memo_planner.cli.app import app, clear_errors
from memo_planner.layout.packing import DEFAULT_SECONDS, Progress
from memo_planner.layout.packing import pack as pack_problem
from memo_planner.layout.placement import Placement
from memo_planner.layout.problem import PackingProblem
from memo_planner.layout.step import step_problem
from memo_planner.layout.table import read_problem, write_placement
from memo_planner.layout.validate import faults
from memo_planner.sizes import format_bytes
from memo_planner.trace.table import is_trace, read_requests

_FILE = (
    "CSV: id,lower,upper,size; or the trace of a step (JSON, or CSV with phase, block, tile, op)."
)
_Capacity = Annotated[
    int | None, typer.Option(help="Most bytes; without it the peak is made as low as it goes.")
]


@app.command()
def pack(
    path: Annotated[Path, typer.Argument(metavar="FILE", help=_FILE)],
    capacity: _Capacity = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV with offsets.")] = None,
    alignment: Annotated[int, typer.Option(help="Offsets are multiples of so many bytes.")] = 1,
    seconds: Annotated[float, typer.Option(help="Give up after so long.")] = DEFAULT_SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find offsets so that buffers alive at the same time do not overlap."""
    with clear_errors():
        problem = _problem(path, alignment)
        with _progress() as progress:
            placement = pack_problem(
                problem, capacity_bytes=capacity, seconds=seconds, progress=progress
            )
        _check(placement, capacity)
        if out is not None:
            write_placement(out, placement)
    summary = _summary(placement, capacity)
    typer.echo(json.dumps(summary, indent=1, allow_nan=False) if as_json else _text(summary))


def _problem(path: Path, alignment_bytes: int) -> PackingProblem:
    """What is to be packed. Raises: InvalidInput; PlanFileError."""
    if is_trace(path):
        return step_problem(read_requests(path), alignment_bytes)
    return read_problem(path, alignment_bytes=alignment_bytes)


def _check(placement: Placement, capacity_bytes: int | None) -> None:
    """Never hand out a placement that the independent validator does not accept."""
    found = faults(placement, capacity_bytes)
    assert not found, f"the packer returned an invalid placement: {found[0]}"


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A status line on a terminal's stderr for searches that take long; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with console.status("packing") as status:

        def show(peak_bytes: int, bound_bytes: int, nodes: int) -> None:
            best = f"best peak {format_bytes(peak_bytes)}, " if peak_bytes >= 0 else ""
            status.update(
                f"packing: {best}lower bound {format_bytes(bound_bytes)}, {nodes:,} nodes"
            )

        yield show


def _summary(placement: Placement, capacity_bytes: int | None) -> dict[str, Any]:
    return {
        "buffers": len(placement.problem),
        "capacity_bytes": capacity_bytes,
        "peak_bytes": placement.peak_bytes,
        "lower_bound_bytes": placement.lower_bound_bytes,
        "gap": placement.gap,
        "alignment_bytes": placement.problem.alignment_bytes,
        "seconds": round(placement.seconds, 6),
        "nodes": placement.nodes,
    }


def _text(summary: dict[str, Any]) -> str:
    peak, bound = summary["peak_bytes"], summary["lower_bound_bytes"]
    verdict = "proved optimal" if peak == bound else f"gap {summary['gap']:.2%}"
    return (
        f"{summary['buffers']:,} buffers, alignment {summary['alignment_bytes']:,}\n"
        f"peak         {peak:,} bytes ({format_bytes(peak)})\n"
        f"lower bound  {bound:,} bytes ({verdict})\n"
        f"searched     {summary['seconds']:.3f} s, {summary['nodes']:,} nodes"
    )
