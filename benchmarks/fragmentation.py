"""How much memory allocators reserve for recorded steps, and how much of it is ever in use.

usage: python benchmarks/fragmentation.py [--csv-traces DIR] [--no-fake] [--no-real] [--csv]

PyTorch's CUDA allocators are simulated by their published rules: no GPU is used. glibc is measured.
Steps are of models at their real size, followed without arithmetic; of a small model, computed for
real; and of the CSV files of a folder. docs/fragmentation.md says what the columns mean.
"""

import argparse
import functools
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "planner")]

from benchmarks.recorded_steps import Step, fake_steps, real_steps
from benchmarks.results import ResultRow, append_csv, print_table, write_json
from memo_planner.allocators import AllocatorRun, ComparisonOptions, compare_allocators
from memo_planner.layout import read_step

_GIB = 2**30
_RECORDED = ("hf_", "meg_", "real_")
"""Names of recorded steps begin so; a folder may hold made-up packing problems as well."""


def main() -> None:
    """Record every step, serve it by every allocator, print, and write what was asked for."""
    options = _parse()
    found: list[dict[str, Any]] = []
    for name, record in _steps(options):
        begun_s = time.perf_counter()
        requests = record()
        recorded_s = time.perf_counter() - begun_s
        runs = compare_allocators(requests, ComparisonOptions(num_steps=options.steps))
        seconds = time.perf_counter() - begun_s
        found.append({"trace": name, "requests": len(requests), "runs": runs})
        print(
            f"{name}: {len(requests):,} requests, recorded in {recorded_s:.1f} s, "
            f"compared in {seconds - recorded_s:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    _print(found)
    rows = [{**each, "runs": [_record(run) for run in each["runs"]]} for each in found]
    write_json(options.json, {"steps": options.steps, "rows": rows})
    if options.csv:
        append_csv("fragmentation", list(_results(found, options.steps)))


def _steps(options: argparse.Namespace) -> Iterator[Step]:
    if options.fake:
        yield from fake_steps()
    if options.real:
        yield from real_steps()
    if options.csv_traces is not None:
        for path in sorted(options.csv_traces.glob("*.csv")):
            if path.name.startswith(_RECORDED):
                yield path.stem, functools.partial(read_step, path)


def _record(run: AllocatorRun) -> dict[str, Any]:
    return {**asdict(run), "fragmentation": run.fragmentation}


def _print(found: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(run.allocator for each in found for run in each["runs"]))
    lines = []
    for each in found:
        runs = {run.allocator: run for run in each["runs"]}
        alive = max(run.requested_peak_bytes for run in each["runs"])
        cells = [_cell(runs.get(name)) for name in names]
        lines.append([each["trace"], f"{each['requests']:,}", f"{alive / _GIB:,.2f}", *cells])
    header = ["step", "requests", "alive GiB", *names]
    print_table("GiB reserved, and the share of it never in use", header, lines)


def _cell(run: AllocatorRun | None) -> str:
    if run is None:
        return "not measured"
    if run.refused_id is not None:
        return "refused"
    return f"{run.reserved_peak_bytes / _GIB:,.2f} {run.fragmentation:6.2%}"


def _results(found: list[dict[str, Any]], num_steps: int) -> Iterator[ResultRow]:
    """Rows of every run that served everything."""
    for each in found:
        settings = f"trace={each['trace']};requests={each['requests']};steps={num_steps}"
        for run in each["runs"]:
            if run.refused_id is not None:
                continue
            figures = {
                "requested_bytes": run.requested_peak_bytes,
                "allocated_bytes": run.allocated_peak_bytes,
                "reserved_bytes": run.reserved_peak_bytes,
                "fragmentation": round(run.fragmentation, 6),
            }
            for figure, value in figures.items():
                yield ResultRow.of(settings, run.allocator, figure, [value])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--csv-traces", type=Path, help="a folder of hf_*, meg_* and real_* CSVs")
    parser.add_argument("--fake", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--real", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=3, help="how often each step is served")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--csv", action="store_true", help="add rows to benchmarks/results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
