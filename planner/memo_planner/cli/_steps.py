"""Commands about a step and its memory: `memo-plan pack, fragmentation, export, simulate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from memo_planner.allocators import AllocatorRun, ComparisonOptions, compare_allocators
from memo_planner.checks import LARGEST, check_number
from memo_planner.cli._app import app, clear_errors, plain_console
from memo_planner.errors import InvalidInput, format_bytes
from memo_planner.export import (
    LARGEST_SHOWN,
    Addresses,
    chrome_trace,
    memory_map,
    snapshot,
    write_chrome_trace,
    write_snapshot,
)
from memo_planner.layout import (
    DEFAULT_SECONDS,
    PackingProblem,
    Placement,
    Progress,
    faults,
    read_problem,
    read_step,
    step_problem,
    write_placement,
)
from memo_planner.layout import pack as pack_problem
from memo_planner.plan import Plan
from memo_planner.schedule import (
    CopyBudget,
    Simulation,
    Speeds,
    StepRest,
    figure_rows,
    schedule_of,
    summary,
    svg_text,
    timeline_lines,
)
from memo_planner.schedule import simulate as run
from memo_planner.trace import Column, Requests, is_trace, read_requests

_FILE = (
    "CSV: id,lower,upper,size; or the trace of a step (JSON, or CSV with phase, block, tile, op)."
)
_Capacity = Annotated[
    int | None, typer.Option(help="Most bytes; without it the peak is made as low as it goes.")
]

_GIB = 2**30
_HEAD = ("allocator", "reserved", "allocated", "fragmentation", "segments", "retries", "found by")
# Links are sold in powers of ten, memory in powers of two.
_GB = 1e9
_TERA = 1e12


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
    for each in runs:
        table.add_row(*_cells(each))
    plain_console().print(table)


def _bytes(device_gib: float) -> int:
    return int(check_number("--device-gib", device_gib, most=LARGEST / _GIB) * _GIB)


def _record(run: AllocatorRun) -> dict[str, Any]:
    return {**asdict(run), "fragmentation": run.fragmentation}


def _cells(run: AllocatorRun) -> tuple[str, ...]:
    sizes = (format_bytes(run.reserved_peak_bytes), format_bytes(run.allocated_peak_bytes))
    counts = (str(run.num_segments), str(run.num_retries))
    if run.is_measured:
        # Segments and retries are the caching allocator's; glibc has neither.
        source, counts = "measured", ("", "")
    else:
        source = "layout" if run.allocator.startswith("layout") else "simulated"
    if run.refused_id is not None:
        return (run.allocator, *sizes, f"out at request {run.refused_id}", *counts, source)
    return (run.allocator, *sizes, f"{run.fragmentation:.2%}", *counts, source)


class Viewer(str, Enum):
    """What opens the file: pytorch.org/memory_viz, ui.perfetto.dev, or anything that shows SVG."""

    MEMORY_VIZ = "memory-viz"
    PERFETTO = "perfetto"
    SVG = "svg"


@app.command()
def export(
    path: Annotated[
        Path, typer.Argument(metavar="TRACE", help="A trace, or a CSV: id,lower,upper,size.")
    ],
    *,
    to: Annotated[Viewer, typer.Option(help="What shall open it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Write here.")],
    addresses: Annotated[
        Addresses, typer.Option(help="Ours, or as simulated allocators would place requests.")
    ] = Addresses.PLANNED,
    alignment: Annotated[int, typer.Option(help="Addresses are multiples of so many bytes.")] = 512,
    largest: Annotated[
        int, typer.Option(help="Perfetto: requests with a slice of their own.")
    ] = LARGEST_SHOWN,
    title: Annotated[str | None, typer.Option(help="Default: file and rule of addresses.")] = None,
) -> None:
    """Write a step for PyTorch's memory visualiser, for Perfetto, or as a picture of memory."""
    with clear_errors():
        requests = read_step(path)
        places = addresses.of(requests, alignment_bytes=alignment)
        name = title or f"{path.name}, {addresses.value} addresses"
        _written(output, _writer(to, requests, places, name, largest))


def _writer(
    to: Viewer, requests: Requests, places: Column, title: str, largest: int
) -> Callable[[Path], object]:
    if to is Viewer.MEMORY_VIZ:
        found = snapshot(requests, places, title=title)
        return lambda path: write_snapshot(found, path)
    if to is Viewer.PERFETTO:
        trace = chrome_trace(requests, places, title=title, num_largest=largest)
        return lambda path: write_chrome_trace(trace, path)
    text = memory_map(requests, places, title=title)
    return lambda path: path.write_text(text, encoding="utf-8")


def _written(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write(path)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written: {error.strerror}") from error


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
            _written(output, schedule.save)
        if svg is not None:
            _written(svg, lambda path: path.write_text(svg_text(step), encoding="utf-8"))
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
