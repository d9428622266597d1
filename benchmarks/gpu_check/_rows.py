"""Rows of the check: written as they come, then as CSV in the form of benchmarks/results, and told.

A row is a JSON object: part, what, mode, tokens, outcome ("ok" or why not), and "figures", each a
number or the numbers of repeated runs. What else it has are settings and texts.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.results import ResultRow, commit_name

Row = dict[str, Any]
_HEADS = ("part", "what", "mode", "outcome", "figures", "job", "job_s", "text")
_MIB = 2**20
_GIB = 2**30


def append(path: Path, row: Row) -> None:
    """Write a row at once: a call that is cut off leaves what it had."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """All rows; a line that was cut off in the middle is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_csv(path: Path, rows: Sequence[Row], machine: str) -> None:
    """Every figure of every row as a `ResultRow`, to be added to benchmarks/results/."""
    commit = commit_name()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ResultRow)])
        writer.writeheader()
        for row in rows:
            writer.writerows(asdict(each) for each in _results(row, commit, machine))


def _results(row: Row, commit: str, machine: str) -> Iterator[ResultRow]:
    plain = (str, int, float)
    given = {k: v for k, v in row.items() if k not in _HEADS and isinstance(v, plain)}
    settings = {"part": row["part"], "what": row["what"], **given}
    for name, value in row.get("figures", {}).items():
        values = value if isinstance(value, list) else [value]
        if values and all(isinstance(each, int | float) for each in values):
            yield ResultRow(
                commit=commit,
                machine=machine,
                settings=";".join(f"{k}={v}" for k, v in settings.items()),
                mode=row.get("mode", ""),
                figure=name,
                median=statistics.median(values),
                min=min(values),
                max=max(values),
                repeats=len(values),
            )


def table(rows: Sequence[Row]) -> list[str]:
    """What a reader needs first: steps side by side, then the other rows."""
    steps = [row for row in rows if row["what"] == "step"]
    lines = [_line(row) for row in rows if row["what"] != "step"]
    if steps:
        lines += ["", _STEP_HEAD, *(_step_line(row, steps) for row in steps)]
    return lines


_STEP_HEAD = (
    f"{'part':<4} {'tokens':>9} {'mode':<15} {'s/step':>8} {'tokens/s':>9} {'/hf':>5} {'MFU':>6} "
    f"{'peak GiB':>8} {'host GiB':>8} {'stall':>6} {'said s':>8} {'blocks s':>8} {'said GiB':>8} "
    " tiles"
)


def _step_line(row: Row, steps: Sequence[Row]) -> str:
    head = f"{row['part']:<4} {row.get('tokens', 0):>9,} {row.get('mode', ''):<15}"
    if row["outcome"] != "ok":
        return f"{head} {row['outcome']}"[:160]
    got = {name: _middle(value) for name, value in row["figures"].items()}
    peers = [r for r in steps if r["outcome"] == "ok" and r["mode"] == "hf_checkpoint"]
    same = [r for r in peers if (r["part"], r["tokens"]) == (row["part"], row["tokens"])]
    faster = f"{_middle(same[0]['figures']['seconds']) / got['seconds']:.2f}" if same else "-"
    said = " " * 26
    if "predicted_s" in got:
        said = (
            f"{got['predicted_s']:>8.3f} {got.get('blocks_s', 0):>8.3f} "
            f"{got['predicted_peak_bytes'] / _GIB:>8.2f}"
        )
    return (
        f"{head} {got['seconds']:>8.3f} {got['tokens_per_s']:>9,.0f} {faster:>5} "
        f"{got['mfu']:>6.1%} {got['device_peak_bytes'] / _GIB:>8.2f} "
        f"{got['host_peak_bytes'] / _GIB:>8.2f} {got['stall_share']:>6.1%} {said}  "
        f"{row.get('tiles', '')}"
    )


def _line(row: Row) -> str:
    words = [f"{row['part']}: {row['what']}", str(row.get("mode", ""))]
    words += [f"{row['tokens']:,} tokens"] if "tokens" in row else []
    if row["outcome"] != "ok":
        words.append(row["outcome"])
    told = [f"{name} {_shown(name, _middle(v))}" for name, v in row.get("figures", {}).items()]
    told += [f"{name} {row[name]}" for name in ("text",) if name in row]
    return " ".join([*filter(None, words), *(["-", ", ".join(told)] if told else [])])[:220]


def _middle(value: Any) -> float:
    return float(statistics.median(value if isinstance(value, list) else [value]))


def _shown(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value / _MIB:,.1f} MiB"
    if name.endswith("_bytes_per_s"):
        return f"{value / 1e9:.2f} GB/s"
    if name.endswith("flops_per_s"):
        return f"{value / 1e12:.4g} TFLOP/s"
    return f"{value:.4g}"
