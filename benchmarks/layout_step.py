"""How long the layout of a recorded step takes, and how near its peak is to the lower bound.

usage: python benchmarks/layout_step.py TRACE.csv ... [--seconds 10] [--repeats 3] [--csv]

A trace is the CSV of a recorded step with the columns `id,lower,upper,size,phase,block`.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "planner")]

from benchmarks.results import ResultRow, append_csv, mib, print_table
from memo_planner.layout import faults
from memo_planner.layout.step import StepLayout, lay_out_step
from memo_planner.trace.requests import PHASES, Requests


def read_step(path: Path) -> Requests:
    """The requests of a recorded step's CSV."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {
        name: np.array([int(row[name]) for row in rows], np.int64)
        for name in ("id", "lower", "upper", "size", "block")
    }
    return Requests(
        ids=columns["id"],
        malloc_times=columns["lower"],
        free_times=columns["upper"],
        size_bytes=columns["size"],
        phases=np.array([PHASES.index(row["phase"]) for row in rows], np.int64),
        blocks=columns["block"],
        tiles=np.full(len(rows), -1),
        ops=np.zeros(len(rows), np.int64),
        op_names=("",),
        end_time=int(columns["upper"].max()),
    )


def main() -> None:
    """Lay every trace out, print, and append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", action="store_true")
    options = parser.parse_args()
    table, rows = [], []
    for path in options.files:
        begun_s = time.perf_counter()
        requests = read_step(path)
        read_s = time.perf_counter() - begun_s
        seconds, layout = _measure(requests, options)
        table.append([path.stem, f"{len(requests):,}", f"{read_s:.2f}", *_cells(layout, seconds)])
        settings = f"trace={path.stem};requests={len(requests)};limit_s={options.seconds:g}"
        rows.append(ResultRow.of(settings, "two levels", "seconds", seconds))
        rows.append(ResultRow.of(settings, "two levels", "gap", [layout.placement.gap]))
    header = ["trace", "requests", "read s", "groups", "different", "opened"]
    print_table("layout of a step", [*header, "peak", "gap", "median s"], table)
    if options.csv:
        append_csv("layout_step", rows)


def _measure(requests: Requests, options: argparse.Namespace) -> tuple[list[float], StepLayout]:
    seconds = []
    for _ in range(options.repeats):
        begun_s = time.perf_counter()
        layout = lay_out_step(requests, seconds=options.seconds)
        seconds.append(time.perf_counter() - begun_s)
    assert not faults(layout.placement)
    return seconds, layout


def _cells(layout: StepLayout, seconds: list[float]) -> list[str]:
    counts = [layout.num_groups, layout.num_shapes, layout.num_opened]
    peak, gap = layout.placement.peak_bytes, layout.placement.gap
    middle = sorted(seconds)[len(seconds) // 2]
    return [*map(str, counts), mib(peak), f"{gap:.4%}", f"{middle:.3f}"]


if __name__ == "__main__":
    main()
