"""How fast the native packer meets capacities, and closes the gap where none is given.

usage: python benchmarks/packing.py [FILE ...] [--seconds 60] [--repeats 3] [--csv]

A file is a problem, `id,lower,upper,size`; `NAME.CAPACITY.csv` has a capacity to meet, any other is
packed as low as it goes. Without files, problems cut out of a full rectangle of time and bytes are
packed: a perfect packing exists, and greedy packers do not find it.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "planner")]

from benchmarks.results import ResultRow, append_csv, print_table
from memo_planner.errors import InvalidInput
from memo_planner.layout import NoPlacement, PackingProblem, faults, pack, read_problem

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


def main() -> None:
    """Pack everything, print, and append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--csv", action="store_true")
    options = parser.parse_args()
    try:
        problems = cases(options.files)
    except InvalidInput as error:
        parser.error(str(error))
    table, rows = [], []
    for name, problem, capacity in problems:
        line, seconds = _measure(problem, capacity, options)
        table.append([name, f"{len(problem):,}", *line])
        settings = f"problem={name};capacity={capacity};limit_s={options.seconds:g}"
        mode = line[-1]
        rows.append(ResultRow.of(settings, mode, "seconds", seconds))
    header = [
        "problem",
        "buffers",
        "capacity",
        "peak",
        "lower bound",
        "nodes",
        "median s",
        "result",
    ]
    print_table("native packer", header, table)
    if options.csv:
        append_csv("packing", rows)


def _measure(
    problem: PackingProblem, capacity: int | None, options: argparse.Namespace
) -> tuple[list[str], list[float]]:
    """The table's cells after name and size, and the seconds of each repeat."""
    seconds: list[float] = []
    cells = ["-"] * 3
    for _ in range(options.repeats):
        begun_s = time.perf_counter()
        try:
            placement = pack(problem, capacity_bytes=capacity, seconds=options.seconds)
        except NoPlacement:
            seconds.append(time.perf_counter() - begun_s)
            result = "not met"
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


if __name__ == "__main__":
    main()
