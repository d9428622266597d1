"""The common CSV form of packing problems and placements: `id,lower,upper,size[,offset]`."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np

from memo_planner.checks import LARGEST
from memo_planner.errors import InvalidInput
from memo_planner.layout.placement import Placement
from memo_planner.layout.problem import Int64s, PackingProblem

_NEEDED = ("id", "lower", "upper", "size")
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}\Z")


def read_problem(path: Path, *, alignment_bytes: int = 1) -> PackingProblem:
    """The problem in a CSV file; columns may come in any order and others are ignored.

    Raises: InvalidInput, naming file, line and value.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from error
    return parse_problem(text, str(path), alignment_bytes=alignment_bytes)


def parse_problem(text: str, name: str = "text", *, alignment_bytes: int = 1) -> PackingProblem:
    """The problem in the text of a CSV file, which messages call `name`. Raises: InvalidInput."""
    lines, columns = _columns(text, name)
    ids = columns["id"]
    _check_ids(ids, lines, name)
    numbers = {key: _numbers(columns[key], lines, f"{name}: {key}") for key in _NEEDED[1:]}
    _check_rows(numbers, lines, name)
    return PackingProblem(
        ids=tuple(ids),
        lower=numbers["lower"],
        upper=numbers["upper"],
        size_bytes=numbers["size"],
        alignment_bytes=alignment_bytes,
    )


def write_placement(path: Path, placement: Placement) -> None:
    """Write the problem with its offsets. Raises: InvalidInput if the file cannot be written."""
    problem = placement.problem
    columns = (problem.lower, problem.upper, problem.size_bytes, placement.offset_bytes)
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*_NEEDED, "offset"])
            writer.writerows(zip(problem.ids, *(c.tolist() for c in columns), strict=True))
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be written: {error.strerror}") from error


def _columns(text: str, name: str) -> tuple[list[int], dict[str, list[str]]]:
    """Line numbers and the needed columns' cells, stripped, of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    lines, rows = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                lines.append(reader.line_num)
                rows.append(row)
    except csv.Error as error:
        raise InvalidInput(f"{name}: line {reader.line_num}: {error}") from error
    if not rows:
        raise InvalidInput(f"{name}: is empty; the first line must be {','.join(_NEEDED)}")
    header = [cell.strip() for cell in rows.pop(0)]
    lines.pop(0)
    places = _places(header, name)
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise InvalidInput(
                f"{name}: line {line} has {len(row)} columns, the header {len(header)}"
            )
    return lines, {key: [row[at].strip() for row in rows] for key, at in places.items()}


def _places(header: list[str], name: str) -> dict[str, int]:
    for key in _NEEDED:
        if header.count(key) != 1:
            shown = ",".join(header)
            raise InvalidInput(
                f"{name}: the header is {shown[:80]!r}; it must name {','.join(_NEEDED)} once each"
            )
    return {key: header.index(key) for key in _NEEDED}


def _check_ids(ids: list[str], lines: list[int], name: str) -> None:
    if len(set(ids)) == len(ids) and "" not in ids:
        return
    first: dict[str, int] = {}
    for line, text in zip(lines, ids, strict=True):
        if not text:
            raise InvalidInput(f"{name}: line {line} has no id")
        if text in first:
            raise InvalidInput(f"{name}: line {line} repeats the id {text!r} of line {first[text]}")
        first[text] = line


def _numbers(cells: list[str], lines: list[int], name: str) -> Int64s:
    if not all(map(_WHOLE.match, cells)):
        line, cell = next(
            (line, cell) for line, cell in zip(lines, cells, strict=True) if not _WHOLE.match(cell)
        )
        raise InvalidInput(f"{name} is {cell[:40]!r} in line {line}; it must be a whole number")
    values = list(map(int, cells))
    if values and not -LARGEST <= min(values) <= max(values) <= LARGEST:
        bad = next(i for i, value in enumerate(values) if abs(value) > LARGEST)
        raise InvalidInput(f"{name} is {values[bad]:,} in line {lines[bad]}; most is {LARGEST:,}")
    return np.fromiter(values, np.int64, len(values))


def _check_rows(numbers: dict[str, Int64s], lines: list[int], name: str) -> None:
    for bad, key, rule in (
        (numbers["size"] < 1, "size", "1 or more"),
        (numbers["upper"] <= numbers["lower"], "upper", "above lower"),
    ):
        for i in np.flatnonzero(bad)[:1]:
            raise InvalidInput(
                f"{name}: {key} is {int(numbers[key][i]):,} in line {lines[i]} "
                f"(lower {int(numbers['lower'][i]):,}); it must be {rule}"
            )
