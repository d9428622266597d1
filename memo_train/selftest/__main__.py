"""python -m memo_train.selftest [--quick] [--allocator A] [--json PATH]: exit code 0 or 1.

Prints what the self-test found, as people read it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import memo_train.selftest
from memo_planner.errors import format_bytes
from memo_train.device._cuda_memory import install_cuda_allocator
from memo_train.selftest._ranks import Ranks
from memo_train.selftest._report import outcomes, run_selftest
from memo_train.selftest._scenario import FAILED, KINDS, PASSED, kind_of

_STYLES = dict(zip(KINDS, ("green", "bold red", "yellow"), strict=True))
_LOADS = {"alone": "one way", "both": "both ways", "all_ranks": "both ways, all ranks"}
_NONE = "-"
_ALLOCATORS = ("both", "torch", "memo")


def print_summary(result: dict[str, Any], path: Path) -> None:
    """Machine, outcomes, figures and reasons of a `run_selftest`, to standard output."""
    console = Console(highlight=False)
    for line in _machine_lines(result["ranks"]):
        _print_line(console, line)
    tables = (_outcome_table, _link_table, _step_table, _peak_table)
    for table in tables:
        console.print()
        console.print(table(result["ranks"]))
    console.print()
    _print_reasons(console, result["ranks"])
    counts = ", ".join(f"{count} {kind}" for kind, count in result["counts"].items() if count)
    word = PASSED if result["passed"] else FAILED
    _print_line(console, f"{word.upper()}: {counts}; written to {path}", style=_STYLES[word])


def _machine_lines(ranks: list[dict[str, Any]]) -> list[str]:
    """A line for each kind of machine, with the ranks on it if there are several."""
    ranks_of: dict[str, list[str]] = {}
    for rank in ranks:
        ranks_of.setdefault(_described(rank["machine"]), []).append(str(rank["rank"]))
    if len(ranks) == 1:
        return list(ranks_of)
    return [f"ranks {', '.join(numbers)}: {text}" for text, numbers in ranks_of.items()]


def _described(machine: dict[str, Any]) -> str:
    cuda = machine["cuda"]
    parts = [
        f"{machine['system']}, {machine['processors']} processors",
        f"{format_bytes(machine['memory_bytes'])} memory",
        f"torch {machine['torch']}",
        f"GPUs: {', '.join(cuda['names'])}, tensors in {cuda['allocator']}'s memory"
        if "names" in cuda
        else f"no GPU used: {cuda['why']}",
    ]
    return "; ".join(parts)


def _table(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _outcome_table(ranks: list[dict[str, Any]]) -> Table:
    """A row for each scenario, a column for each device of each rank."""
    kinds: dict[str, dict[str, str]] = {}
    for rank, device, scenario, outcome in outcomes(ranks):
        kinds.setdefault(scenario, {})[_where(rank, device, ranks)] = kind_of(outcome)
    places = list(dict.fromkeys(place for row in kinds.values() for place in row))
    table = _table("scenarios", ["scenario", *places], [])
    for scenario, row in kinds.items():
        cells = [row.get(place, _NONE) for place in places]
        table.add_row(scenario, *(f"[{_STYLES[c]}]{c}[/]" if c in _STYLES else c for c in cells))
    return table


def _link_table(ranks: list[dict[str, Any]]) -> Table:
    table = _table("link, GB/s of the slowest rank", ["device", "copies"], ["to host", "to device"])
    for where, figures in _figures(ranks[:1], "link", "num_ranks"):
        for load, words in _LOADS.items():
            rates = (figures[f"{way}_{load}_bytes_per_s"] / 1e9 for way in ("d2h", "h2d"))
            table.add_row(where, words, *(f"{rate:.2f}" for rate in rates))
    return table


def _step_table(ranks: list[dict[str, Any]]) -> Table:
    names = ["s/step", "least", "greatest", "/ plain", "stalls", "stalled s"]
    table = _table("a step, forward and backward, medians", ["device", "mode"], names)
    for where, figures in _figures(ranks, "step", "modes"):
        for mode, each in figures["modes"].items():
            seconds = (each[f"{name}_s"] for name in ("median", "least", "greatest"))
            table.add_row(
                where,
                mode,
                *(f"{s:.4f}" for s in seconds),
                f"{each['over_plain']:.2f}",
                f"{each['stalls']:g}",
                _NONE if each["stall_s"] is None else f"{each['stall_s']:.4f}",
            )
    return table


def _peak_table(ranks: list[dict[str, Any]]) -> Table:
    names = {
        "planned_peak": "planned",
        "limit": "limit",
        "device_peak": "used",
        "torch_peak": "torch says",
        "driver_peak": "driver says",
    }
    table = _table("peak of device memory", ["device", "mode"], list(names.values()))
    for where, figures in _figures(ranks, "planned peak", "modes"):
        for mode, peaks in figures["modes"].items():
            found = (peaks[f"{who}_bytes"] for who in names)
            table.add_row(where, mode, *(_NONE if b is None else format_bytes(b) for b in found))
    return table


def _figures(
    ranks: list[dict[str, Any]], scenario: str, needed: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A scenario's figures wherever it came as far as to have those that are `needed`."""
    for rank in ranks:
        for device, scenarios in rank["devices"].items():
            figures = scenarios.get(scenario, {})
            if needed in figures:
                yield _where(rank["rank"], device, ranks), figures


def _where(rank: int, device: str, ranks: list[dict[str, Any]]) -> str:
    return device if len(ranks) == 1 else f"rank {rank} {device}"


def _print_reasons(console: Console, ranks: list[dict[str, Any]]) -> None:
    """Each reason once, with all scenarios that it stopped."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for rank, device, scenario, outcome in outcomes(ranks):
        kind, _, why = outcome.partition(": ")
        if why:
            where = f"{_where(rank, device, ranks)} {scenario}"
            reasons.setdefault((kind, why), []).append(where)
    for (kind, why), wheres in reasons.items():
        _print_line(console, f"{kind}: {why} ({', '.join(wheres)})", style=_STYLES[kind])


def _print_line(console: Console, text: str, *, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, soft_wrap=True)


def main() -> int:
    """Run, print and write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m memo_train.selftest",
        description=memo_train.selftest.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, default=Path("memo-selftest.json"), metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="only proofs, nothing is timed")
    parser.add_argument("--gpus-only", action="store_true", help="not the CPU device")
    parser.add_argument(
        "--allocator",
        choices=_ALLOCATORS,
        default="both",
        help="whose memory a GPU's tensors have; both: memo-train's in a process of its own, first",
    )
    arguments = parser.parse_args()
    path: Path = arguments.json
    if not path.parent.is_dir():
        parser.error(f"--json {path}: there is no directory {path.parent}; make it first")
    # cuBLAS gives the same bits each time only with a work space of a set size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    other = 0
    if torch.cuda.is_available() and "LOCAL_RANK" not in os.environ:
        other = _prepare_allocator(arguments)
    elif arguments.allocator == "memo":
        parser.error("--allocator memo: this process sees no GPU, or is one of several ranks")
    elif arguments.gpus_only and not torch.cuda.is_available():
        parser.error("--gpus-only: this process sees no GPU")
    return max(_test_here(path, arguments), other)


def _prepare_allocator(arguments: argparse.Namespace) -> int:
    """Put memo-train's allocator in place, or run it in another process: that one's exit code.

    Which allocator serves a process is decided before its first CUDA tensor.
    """
    if arguments.allocator == "memo":
        install_cuda_allocator()
    if arguments.allocator != "both":
        return 0
    path: Path = arguments.json
    command = [sys.executable, "-m", "memo_train.selftest", "--allocator", "memo"]
    command += ["--json", str(path.with_name(f"{path.stem}-memo{path.suffix}"))]
    command += ["--gpus-only"]  # the CPU's tensors are here as there
    command += ["--quick"] if arguments.quick else []
    return int(subprocess.run(command, check=False).returncode != 0)


def _test_here(path: Path, arguments: argparse.Namespace) -> int:
    """Run this process's part, of all ranks if there are several; the exit code."""
    ranks = Ranks.join()
    is_first = ranks.rank == 0
    with Progress(console=Console(stderr=True), transient=True, disable=not is_first) as progress:
        task = progress.add_task("", total=1.0)
        result = run_selftest(
            ranks,
            started=lambda what, share: progress.update(task, description=what, completed=share),
            quick=arguments.quick,
            gpus_only=arguments.gpus_only,
        )
    if is_first:
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
        print_summary(result, path)
    ranks.leave()
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
