"""A trace: the requests of one step and what it was a step of, in a file with hashes, and as CSV.

The CSV is `id,lower,upper,size`, which packers read, then where each request came from.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memo_planner.checks import check_int, check_text
from memo_planner.codec import decode, encode, hash_of, read_document
from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.trace._requests import PHASES, Column, Requests

FORMAT = "memo-trace"
VERSION = 1
KINDS = ("recorded", "fake")
_COLUMNS = (
    "ids",
    "malloc_times",
    "free_times",
    "size_bytes",
    "phases",
    "blocks",
    "tiles",
    "ops",
)
HEADER = ("id", "lower", "upper", "size", "phase", "block", "tile", "op")
_DIGITS = frozenset("-0123456789")
_MOST_DIGITS = 19
"""Fewer fit 64 bits."""

# A binary file may have no end of a line for gigabytes.
_LONGEST_HEADER = 200


@dataclass(frozen=True, kw_only=True)
class TraceSource:
    """What a trace is of.

    kind: `recorded` on a device, or `fake`: the same step without arithmetic or memory.
    model: name for people. model_hash: identity of its parameters. device: its name.
    batch, tokens: of the step; num_blocks: of the model.
    tile_tokens: tokens of a tile; 0 for a model that is not wrapped.
    policy_hash: sha256 of how tiles were run; "none" for a model that is not wrapped.

    Raises: InvalidInput.
    """

    kind: str
    model: str
    model_hash: str
    device: str
    batch: int
    tokens: int
    num_blocks: int
    tile_tokens: int
    policy_hash: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f"TraceSource.kind is {self.kind!r}; it must be one of {KINDS}")
        for name in ("model", "model_hash", "device", "policy_hash"):
            check_text(f"TraceSource.{name}", getattr(self, name))
        for name in ("batch", "tokens", "num_blocks"):
            check_int(f"TraceSource.{name}", getattr(self, name), 1)
        check_int("TraceSource.tile_tokens", self.tile_tokens, 0)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The requests of one step. `save` and `load` keep it as JSON (docs/formats.md).

    inputs_hash: of `source`. requests_hash: of the requests; both sha256, hexadecimal.
    Raises: InvalidInput if a hash is not that of its part.
    """

    version: int
    source: TraceSource
    requests: Requests
    inputs_hash: str
    requests_hash: str

    def __post_init__(self) -> None:
        check_int("Trace.version", self.version, VERSION, VERSION)
        expected = {
            "inputs_hash": hash_of(encode(self.source)),
            "requests_hash": _hash_of_requests(self.requests),
        }
        for name, value in expected.items():
            if getattr(self, name) != value:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)!r}, what it is of gives {value}"
                )

    @classmethod
    def of(cls, source: TraceSource, requests: Requests) -> Trace:
        """A trace of the current version with its hashes."""
        return cls(
            version=VERSION,
            source=source,
            requests=requests,
            inputs_hash=hash_of(encode(source)),
            requests_hash=_hash_of_requests(requests),
        )

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON, on one line. Raises: OSError."""
        requests = self.requests
        document = {
            "format": FORMAT,
            "version": self.version,
            "source": encode(self.source),
            "end_time": requests.end_time,
            "op_names": list(requests.op_names),
            **{name: getattr(requests, name).tolist() for name in _COLUMNS},
            "inputs_hash": self.inputs_hash,
            "requests_hash": self.requests_hash,
        }
        text = json.dumps(document, separators=(",", ":"), allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace and check it: version, fields, every request, both hashes.

        Raises: PlanFileError naming the file and what is wrong.
        """
        document = read_document(Path(path), format=FORMAT, version=VERSION)
        try:
            return _from_document(document)
        except InvalidInput as error:
            raise PlanFileError(f"{path}: {error}") from error


def _from_document(document: dict[str, Any]) -> Trace:
    wanted = {"format", "version", "source", "end_time", "op_names", *_COLUMNS}
    wanted |= {"inputs_hash", "requests_hash"}
    missing, extra = sorted(wanted - document.keys()), sorted(document.keys() - wanted)
    if missing or extra:
        raise InvalidInput(f"trace has missing fields {missing} and unknown fields {extra}")
    names = document["op_names"]
    requests = Requests(
        op_names=tuple(names) if isinstance(names, list) else names,
        end_time=document["end_time"],
        **{name: document[name] for name in _COLUMNS},
    )
    return Trace(
        version=document["version"],
        source=decode(TraceSource, document["source"], "source"),
        requests=requests,
        inputs_hash=document["inputs_hash"],
        requests_hash=document["requests_hash"],
    )


def _hash_of_requests(requests: Requests) -> str:
    """sha256 of the names and the columns as little-endian int64, in the order of the file."""
    head = {"end_time": requests.end_time, "op_names": list(requests.op_names)}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    for name in _COLUMNS:
        digest.update(np.ascontiguousarray(getattr(requests, name), dtype="<i8").tobytes())
    return digest.hexdigest()


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
    if path.suffix.lower() == ".json":
        return True
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(_LONGEST_HEADER).rstrip() == ",".join(HEADER)
    except (OSError, UnicodeDecodeError):
        return False


def read_requests(path: Path) -> Requests:
    """The requests of a trace, JSON or CSV. Raises: PlanFileError."""
    return Trace.load(path).requests if path.suffix.lower() == ".json" else read_csv(path)


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
