"""`memo-plan export`: a recorded step for a viewer."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from memo_planner.cli.app import app, clear_errors
from memo_planner.errors import InvalidInput
from memo_planner.export.addresses import Addresses, addresses_by
from memo_planner.export.memory_map import memory_map
from memo_planner.export.memory_viz import snapshot, write_snapshot
from memo_planner.export.perfetto import LARGEST_SHOWN, chrome_trace, write_chrome_trace
from memo_planner.step_file import read_step
from memo_planner.trace.columns import Column
from memo_planner.trace.requests import Requests


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
        places = addresses_by(addresses, requests, alignment_bytes=alignment)
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
