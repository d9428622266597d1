"""How fast the native packer meets capacities, and closes the gap where none is given.

usage: python benchmarks/packing.py [FILE ...] [--seconds 60] [--repeats 3] [--variants 1] [--csv]
                                    [--omnimalloc supermalloc minimalloc omni]

A file is a problem, `id,lower,upper,size`; `NAME.CAPACITY.csv` has a capacity to meet, any other is
packed as low as it goes. Without files, problems cut out of a full rectangle of time and bytes are
packed: a perfect packing exists, and greedy packers do not find it. Each of `--variants` is a row,
so that luck shows: the buffers in another order, every other time with time reversed.
`--omnimalloc` measures allocators of the OmniMalloc package beside it, in turn, if it is installed.
"""

import argparse
import importlib
import inspect
import itertools
import multiprocessing
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "planner")]

from benchmarks.results import ResultRow, append_csv, print_table
from memo_planner.errors import InvalidInput
from memo_planner.layout import NoPlacement, PackingProblem, Placement, faults, pack, read_problem

SIDE = 1024


def cut_problem(seed: int, num_buffers: int) -> PackingProblem:
    """A square of `SIDE` times by `SIDE` bytes cut into buffers."""
    chance = random.Random(seed)
    pieces = [(0, SIDE, 0, SIDE)]
    while len(pieces) < num_buffers:
        weights = [float((b - a) * (d - c)) for a, b, c, d in pieces]
        at = chance.choices(range(len(pieces)), weights)[0]
        a, b, c, d = pieces[at]
        if chance.random() < 0.5 and b - a > 1:
            cut = chance.randint(a + 1, b - 1)
            pieces[at : at + 1] = [(a, cut, c, d), (cut, b, c, d)]
        elif d - c > 1:
            cut = chance.randint(c + 1, d - 1)
            pieces[at : at + 1] = [(a, b, c, cut), (a, b, cut, d)]
    lower, upper, low, high = (np.array(column) for column in zip(*pieces, strict=True))
    return PackingProblem(
        ids=tuple(map(str, range(len(pieces)))), lower=lower, upper=upper, size_bytes=high - low
    )


def cases(files: list[Path]) -> list[tuple[str, PackingProblem, int | None]]:
    """Name, problem and capacity of everything to be packed."""
    if files:
        return [(path.stem, read_problem(path), _capacity(path)) for path in files]
    return [
        (f"cut-{count}-{seed}", cut_problem(seed, count), SIDE)
        for count in (150, 200, 300)
        for seed in range(3)
    ]


def _capacity(path: Path) -> int | None:
    last = path.stem.rpartition(".")[2]
    return int(last) if last.isdigit() else None


Run = Callable[[PackingProblem, int | None, float], Placement]
"""Packs within a capacity, or as low as it goes, in at most so many seconds."""


def native(problem: PackingProblem, capacity: int | None, seconds: float) -> Placement:
    """The project's own packer."""
    return pack(problem, capacity_bytes=capacity, seconds=seconds)


def variant(problem: PackingProblem, number: int) -> PackingProblem:
    """The same problem in other words; number 0 is as it was."""
    if number == 0:
        return problem
    order = np.random.default_rng(number).permutation(len(problem))
    lower, upper = problem.lower[order], problem.upper[order]
    if number % 2:
        lower, upper = -upper, -lower
    ids, sizes = tuple(problem.ids[i] for i in order.tolist()), problem.size_bytes[order]
    return PackingProblem(ids=ids, lower=lower, upper=upper, size_bytes=sizes)


def omnimalloc(allocator: str) -> Run:
    """An allocator of OmniMalloc. It is not told of a capacity, but may take all the time."""

    def run(problem: PackingProblem, capacity: int | None, seconds: float) -> Placement:
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool:
            waiting = pool.apply_async(_omnimalloc_offsets, (allocator, problem, seconds))
            try:
                offsets = waiting.get(2 * seconds)
            except multiprocessing.TimeoutError:
                raise NoPlacement(f"{allocator} is not done in {2 * seconds:g} s") from None
        placement = Placement(
            problem=problem,
            offset_bytes=offsets,
            lower_bound_bytes=problem.lower_bound_bytes,
            seconds=0.0,
            nodes=0,
        )
        if capacity is not None and placement.peak_bytes > capacity:
            raise NoPlacement(f"{allocator} gives {placement.peak_bytes:,} bytes")
        return placement

    return run


def _omnimalloc_offsets(name: str, problem: PackingProblem, seconds: float) -> Any:
    package = importlib.import_module("omnimalloc")
    module = importlib.import_module(f"omnimalloc.allocators.{name}")
    allocator = getattr(module, f"{name.capitalize()}Allocator")
    timed = "timeout" in inspect.signature(allocator).parameters
    columns = (problem.lower, problem.upper, problem.size_bytes)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    buffers = [
        package.Allocation(id=i, size=size, start=lower, end=upper)
        for i, (lower, upper, size) in enumerate(rows)
    ]
    placed = package.allocate(
        buffers, allocator=allocator(**({"timeout": seconds} if timed else {}))
    )
    return np.array([each.offset for each in sorted(placed, key=lambda each: each.id)])


def main() -> None:
    """Pack everything, print, and append rows."""
    options = _parse()
    runs: dict[str, Run] = {"native": native}
    runs |= {name: omnimalloc(name) for name in options.omnimalloc}
    table, rows = [], []
    for name, problem, capacity in cases(options.files):
        for number, (who, run) in itertools.product(range(options.variants), runs.items()):
            line, seconds = _measure(run, variant(problem, number), capacity, options)
            table.append([f"{name} #{number}", who, f"{len(problem):,}", *line])
            settings = f"problem={name};variant={number};capacity={capacity}"
            settings += f";limit_s={options.seconds:g}"
            rows.append(ResultRow.of(settings, f"{who}: {line[-1]}", "seconds", seconds))
    header = ["problem", "packer", "buffers", "capacity", "peak", "lower bound", "nodes"]
    print_table("packers", [*header, "median s", "result"], table)
    if options.csv:
        append_csv("packing", rows)


def _measure(
    run: Run, problem: PackingProblem, capacity: int | None, options: argparse.Namespace
) -> tuple[list[str], list[float]]:
    """The table's cells after name and size, and the seconds of each repeat."""
    seconds: list[float] = []
    cells, result = ["-"] * 3, "not met"
    for _ in range(options.repeats):
        begun_s = time.perf_counter()
        try:
            placement = run(problem, capacity, options.seconds)
        except NoPlacement as refused:
            print(f"  {refused}", file=sys.stderr)
            seconds.append(time.perf_counter() - begun_s)
            continue
        seconds.append(time.perf_counter() - begun_s)
        assert not faults(placement, capacity)
        result = "optimal" if placement.gap == 0 else "met" if capacity else "gap"
        cells = [
            f"{placement.peak_bytes:,}",
            f"{placement.lower_bound_bytes:,}",
            f"{placement.nodes:,}",
        ]
    shown = f"{capacity:,}" if capacity else "-"
    return [shown, *cells, f"{sorted(seconds)[len(seconds) // 2]:.3f}", result], seconds


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", type=int, default=1)
    parser.add_argument("--omnimalloc", nargs="+", default=[], metavar="ALLOCATOR")
    parser.add_argument("--csv", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InvalidInput as error:
        raise SystemExit(str(error)) from error
