"""A trace: the requests of one step and what it was a step of, in a file with hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memo_planner.checks import check_int, check_text
from memo_planner.codec import decode, encode, read_document
from memo_planner.errors import InvalidInput, PlanFileError
from memo_planner.trace.requests import Requests

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
            "inputs_hash": _hash_of_source(self.source),
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
            inputs_hash=_hash_of_source(source),
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
        document = read_document(Path(path))
        for key, value in (("format", FORMAT), ("version", VERSION)):
            if document.get(key) != value or isinstance(document.get(key), bool):
                raise PlanFileError(f"{path}: {key} is {document.get(key)!r}, expected {value!r}")
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


def _hash_of_source(source: TraceSource) -> str:
    text = json.dumps(encode(source), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_of_requests(requests: Requests) -> str:
    """sha256 of the names and the columns as little-endian int64, in the order of the file."""
    head = {"end_time": requests.end_time, "op_names": list(requests.op_names)}
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    for name in _COLUMNS:
        digest.update(np.ascontiguousarray(getattr(requests, name), dtype="<i8").tobytes())
    return digest.hexdigest()
