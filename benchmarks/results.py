"""Where results go: a table on the terminal, a JSON file, and rows of benchmarks/results/*.csv."""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

RESULTS_DIR = Path(__file__).with_name("results")
STDOUT = Path("-")
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One figure of one mode: median, least and greatest of its repeats, and where it was taken."""

    commit: str
    machine: str
    settings: str
    mode: str
    figure: str
    median: float
    min: float
    max: float
    repeats: int

    @staticmethod
    def of(settings: str, mode: str, figure: str, values: Sequence[float]) -> "ResultRow":
        """The row of repeated measurements."""
        return ResultRow(
            commit=commit_name(),
            machine=machine_name(),
            settings=settings,
            mode=mode,
            figure=figure,
            median=statistics.median(values),
            min=min(values),
            max=max(values),
            repeats=len(values),
        )


def commit_name() -> str:
    """The checkout's commit, with "-dirty" after it if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(
        command, cwd=RESULTS_DIR.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def machine_name() -> str:
    """The processor's name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """`--json FILE` writes the figures there; `--json` alone prints them, and no tables."""
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="write all figures to FILE; without FILE print them instead of tables",
    )


def write_json(path: Path | None, values: dict[str, Any]) -> None:
    """Write a benchmark's results with the commit and machine added; None writes nothing."""
    if path is None:
        return
    described = {"commit": commit_name(), "machine": machine_name(), **values}
    text = json.dumps(described, indent=2, allow_nan=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        path.write_text(text)


def append_csv(name: str, rows: Sequence[ResultRow]) -> None:
    """Add rows to benchmarks/results/NAME.csv."""
    RESULTS_DIR.mkdir(exist_ok=True)
    path = RESULTS_DIR / f"{name}.csv"
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ResultRow)])
        if is_new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain-text table with the first column left-aligned, the others right-aligned."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    print(f"\n{title}\n")
    for first, *others in lines:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())


def mib(num_bytes: float) -> str:
    """Bytes as text in MiB."""
    return f"{num_bytes / MIB:,.1f} MiB"
