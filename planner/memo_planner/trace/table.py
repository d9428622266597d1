"""Requests as CSV: `id,lower,upper,size`, which packers read, then where each came from."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.trace.columns import Column
from memo_planner.trace.requests import PHASES, Requests
from memo_planner.trace.trace import Trace

HEADER = ("id", "lower", "upper", "size", "phase", "block", "tile", "op")
_DIGITS = frozenset("-0123456789")
_MOST_DIGITS = 19
"""Fewer fit 64 bits."""
_LONGEST_HEADER = 200


def write_csv(requests: Requests, path: str | Path) -> None:
    """Write one row a request; block and tile are -1 where there is none. Raises: OSError."""
    columns = (
        requests.ids.tolist(),
        requests.malloc_times.tolist(),
        requests.free_times.tolist(),
        requests.size_bytes.tolist(),
        [PHASES[phase] for phase in requests.phases.tolist()],
        requests.blocks.tolist(),
        requests.tiles.tolist(),
        [requests.op_names[op] for op in requests.ops.tolist()],
    )
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(zip(*columns, strict=True))


def read_csv(path: str | Path) -> Requests:
    """Read what `write_csv` wrote; the step ends when its last request is freed.

    Raises: PlanFileError naming file and line.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return _requests(csv.reader(file, strict=True))
    except OSError as error:
        raise PlanFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PlanFileError(f"{path}: is not UTF-8 text: {error.reason}") from error
    except (csv.Error, InvalidInput) as error:
        raise PlanFileError(f"{path}: {error}") from error


def is_trace(path: Path) -> bool:
    """Whether a file is a step's trace, by its name (JSON) or its first line (CSV)."""
    if path.suffix == ".json":
        return True
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(_LONGEST_HEADER).rstrip() == ",".join(HEADER)
    except (OSError, UnicodeDecodeError):
        return False


def read_requests(path: Path) -> Requests:
    """The requests of a trace, JSON or CSV. Raises: PlanFileError."""
    return Trace.load(path).requests if path.suffix == ".json" else read_csv(path)


def _requests(rows: Iterator[list[str]]) -> Requests:
    header = next(rows, None)
    if header is None or tuple(header) != HEADER:
        raise InvalidInput(f"line 1 is {str(header)[:80]}, expected {','.join(HEADER)}")
    columns = _columns(list(rows))
    times = _whole_numbers(columns["upper"], "upper")
    op_of = {name: index for index, name in enumerate(dict.fromkeys(("", *columns["op"])))}
    return Requests(
        ids=_whole_numbers(columns["id"], "id"),
        malloc_times=_whole_numbers(columns["lower"], "lower"),
        free_times=times,
        size_bytes=_whole_numbers(columns["size"], "size"),
        phases=_phases(columns["phase"]),
        blocks=_whole_numbers(columns["block"], "block"),
        tiles=_whole_numbers(columns["tile"], "tile"),
        ops=np.array([op_of[name] for name in columns["op"]], dtype=np.int64),
        op_names=tuple(op_of),
        end_time=max(int(times.max(initial=1)), 1),
    )


def _columns(rows: list[list[str]]) -> dict[str, Sequence[str]]:
    """The values of each column, in the order of the rows."""
    if set(map(len, rows)) - {len(HEADER)}:
        line, row = next((i, r) for i, r in enumerate(rows, start=2) if len(r) != len(HEADER))
        raise InvalidInput(f"line {line} has {len(row)} values, expected {len(HEADER)}")
    columns = list(zip(*rows, strict=True)) or [()] * len(HEADER)
    return dict(zip(HEADER, columns, strict=True))


def _whole_numbers(texts: Sequence[str], name: str) -> Column:
    # A million values are checked together; only a wrong one is looked for by itself.
    if set("".join(texts)) <= _DIGITS and max(map(len, texts), default=0) < _MOST_DIGITS:
        with suppress(ValueError):
            return np.array(list(map(int, texts)), dtype=np.int64)
    for line, text in enumerate(texts, start=2):
        digits = text.removeprefix("-")
        if not (set(digits) <= _DIGITS and digits.isdigit() and len(text) < _MOST_DIGITS):
            raise InvalidInput(f"line {line}: {name} is {text[:40]!r}, expected a whole number")
    raise AssertionError(f"no value of {name} is wrong, all together are")


def _phases(texts: Sequence[str]) -> Column:
    number_of = {name: index for index, name in enumerate(PHASES)}
    if set(texts) - number_of.keys():
        line, text = next((i, v) for i, v in enumerate(texts, start=2) if v not in number_of)
        raise InvalidInput(f"line {line}: phase is {text[:40]!r}, expected one of {PHASES}")
    return np.array([number_of[text] for text in texts], dtype=np.int64)
