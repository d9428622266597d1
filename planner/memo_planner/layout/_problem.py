"""What is to be packed and where it goes, and the CSV form `id,lower,upper,size[,offset]`."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memo_planner.checks import LARGEST, check_int
from memo_planner.errors import InvalidInput, MemoError

Int64s = NDArray[np.int64]

_NEEDED = ("id", "lower", "upper", "size")
# 19 digits are enough for any valid number, and longer texts are slow to convert.
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}\Z")


@dataclass(frozen=True, kw_only=True, eq=False)
class PackingProblem:
    """Buffers that need addresses so that no two overlap both in time and in space.

    Attributes:
        ids: unique names.
        lower, upper: int64 [buffers]; lifetime `[lower, upper)` in any unit of time.
        size_bytes: int64 [buffers], 1 or more.
        alignment_bytes: offsets are multiples of it, and sizes count as rounded up to it.

    Raises: InvalidInput, naming the buffer and the value.
    """

    ids: tuple[str, ...]
    lower: Int64s
    upper: Int64s
    size_bytes: Int64s
    alignment_bytes: int = 1

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "size_bytes"):
            object.__setattr__(self, name, _int64s(name, getattr(self, name), len(self.ids)))
        check_int("alignment_bytes", self.alignment_bytes, 1)
        self._check_unique()
        self._refuse(np.abs(self.lower) > LARGEST, "lower", self.lower, f"within {LARGEST:,}")
        self._refuse(np.abs(self.upper) > LARGEST, "upper", self.upper, f"within {LARGEST:,}")
        self._refuse(self.upper <= self.lower, "upper", self.upper, "above its lower")
        self._refuse(self.size_bytes < 1, "size_bytes", self.size_bytes, "1 or more")
        total = float(np.sum(self.size_bytes, dtype=np.float64))
        if total + float(self.alignment_bytes) * len(self.ids) > LARGEST:
            raise InvalidInput(f"sizes add up to {total:,.0f} bytes; the most is {LARGEST:,}")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def padded_bytes(self) -> Int64s:
        """int64 [buffers]: sizes rounded up to the alignment."""
        return -(-self.size_bytes // self.alignment_bytes) * self.alignment_bytes

    @cached_property
    def lower_bound_bytes(self) -> int:
        """Most bytes alive at once, padding included: no placement has a lower peak."""
        times = np.concatenate([self.upper, self.lower])
        changes = np.concatenate([-self.padded_bytes, self.padded_bytes])
        order = np.argsort(times, kind="stable")  # at equal times, ends come before beginnings
        return int(np.max(np.cumsum(changes[order]), initial=0))

    def _check_unique(self) -> None:
        seen: set[str] = set()
        for name in self.ids if len(set(self.ids)) != len(self.ids) else ():
            if name in seen:
                raise InvalidInput(f"buffer id {name!r} occurs twice; ids must be unique")
            seen.add(name)

    def _refuse(self, bad: NDArray[np.bool_], name: str, values: Int64s, rule: str) -> None:
        if bad.any():
            i = int(np.argmax(bad))
            span = f"[{self.lower[i]:,}, {self.upper[i]:,})"
            raise InvalidInput(
                f"buffer {self.ids[i]!r} (lifetime {span}): {name} is {int(values[i]):,}; "
                f"it must be {rule}"
            )


def _int64s(name: str, values: Any, length: int) -> Int64s:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.shape != (length,) or array.dtype.kind not in "iu":
        raise InvalidInput(
            f"{name} is an array of {array.dtype} with shape {array.shape}; "
            f"expected whole numbers, one for each of {length:,} ids"
        )
    # Such a number would wrap to a negative one.
    if array.dtype.kind == "u" and (array > LARGEST).any():
        raise InvalidInput(f"{name} holds {int(array.max()):,}; the most is {LARGEST:,}")
    frozen = array.astype(np.int64)
    frozen.flags.writeable = False
    return frozen


class NoPlacement(MemoError):
    """No placement within a capacity exists, or none was found in the time given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Offsets of a problem's buffers.

    Attributes:
        offset_bytes: int64 [buffers].
        lower_bound_bytes: no placement has a lower peak.
        seconds: time spent on finding it.
        nodes: nodes of exact search; 0 if heuristics were enough.
    """

    problem: PackingProblem
    offset_bytes: Int64s
    lower_bound_bytes: int
    seconds: float
    nodes: int

    def __post_init__(self) -> None:
        if self.offset_bytes.shape != (len(self.problem),):
            raise InvalidInput(
                f"{self.offset_bytes.shape} offsets for {len(self.problem):,} buffers"
            )
        self.offset_bytes.flags.writeable = False

    @property
    def peak_bytes(self) -> int:
        """Highest end of a buffer, padding included."""
        return int(np.max(self.offset_bytes + self.problem.padded_bytes, initial=0))

    @property
    def gap(self) -> float:
        """Share by which the peak may be above the lowest possible one; 0.0 is proof of optimum."""
        return (self.peak_bytes - self.lower_bound_bytes) / max(1, self.lower_bound_bytes)


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
