"""The layout that goes with a plan file, in a file beside it: `plan.json`, `plan.layout.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memo_planner.checks import LARGEST, check_int, check_number, check_text
from memo_planner.codec import hash_of, read_document
from memo_planner.errors import InvalidInput, MemoError, PlanFileError
from memo_planner.trace import PHASES, int_column
from memo_train.device import OUTSIDE, Device
from memo_train.layout._solved import SolvedStep
from memo_train.trace import Place

FORMAT = "memo-layout"
VERSION = 1
_FIELDS = {
    "format",
    "version",
    "plan_hash",
    "precision",
    "training",
    "park_pre",
    "given",
    "layout",
    "hash",
}
_COLUMNS = ("size_bytes", "offset_bytes", "mark_values", "mark_firsts")
_LEAST = {"size_bytes": 1, "offset_bytes": OUTSIDE, "mark_values": 0, "mark_firsts": 0}


@dataclass(frozen=True, kw_only=True)
class PlanLayout:
    """How the steps of a plan are carried out, besides what the plan says.

    plan_hash: the plan's `inputs_hash`. precision: what the steps compute in. training: the
    model's mode. park_pre: as in `CopyBudget`. given: names of the arguments of the step's call.
    solved: the layout, None if there was none yet.
    """

    plan_hash: str
    precision: str
    training: bool
    park_pre: bool
    given: tuple[str, ...]
    solved: SolvedStep | None

    def save(self, path: Path) -> None:
        """Write it as JSON (docs/formats.md). Raises: OSError."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "plan_hash": self.plan_hash,
            "precision": self.precision,
            "training": self.training,
            "park_pre": self.park_pre,
            "given": list(self.given),
            "layout": None if self.solved is None else _encode(self.solved),
        }
        document["hash"] = _hash(document)
        text = json.dumps(document, separators=(",", ":"), allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, *, plan_hash: str, device: Device) -> PlanLayout:
        """Read and check it. plan_hash: of the plan that it is to go with; `device` would serve it.

        Raises: PlanFileError naming the file, what is wrong, and both values where two disagree.
        """
        document = read_document(path, format=FORMAT, version=VERSION, plan_hash=plan_hash)
        found, given = _hash(document), document.get("hash")
        if given != found:
            raise PlanFileError(f"{path}: hash is {given!r}, what it is of gives {found!r}")
        try:
            layout = cls._of(document)
            if layout.solved is not None and not device.why_no_layouts:
                # Thrown away: it only checks sizes and offsets against this device's alignment.
                device.make_layout(layout.solved)
        except MemoError as error:
            raise PlanFileError(f"{path}: {error}") from error
        return layout

    @classmethod
    def _of(cls, document: dict[str, Any]) -> PlanLayout:
        _check_names(document, _FIELDS, "the file")
        check_text("precision", document["precision"])
        for name in ("training", "park_pre"):
            if not isinstance(document[name], bool):
                raise InvalidInput(f"{name} is {document[name]!r}; it must be true or false")
        layout = document["layout"]
        return cls(
            plan_hash=document["plan_hash"],
            precision=document["precision"],
            training=document["training"],
            park_pre=document["park_pre"],
            given=_given(document["given"]),
            solved=None if layout is None else _decode(layout),
        )


def _given(value: Any) -> tuple[str, ...]:
    names = _list("given", value)
    for name in names:
        check_text("a name in given", name)
    return tuple(names)


def _hash(document: dict[str, Any]) -> str:
    return hash_of({name: value for name, value in document.items() if name != "hash"})


def _encode(solved: SolvedStep) -> dict[str, Any]:
    return {
        **{name: getattr(solved, name).tolist() for name in _COLUMNS},
        "places": [list(place) for place in solved.places],
        "lower_bound_bytes": solved.lower_bound_bytes,
        "seconds": solved.seconds,
    }


def _decode(layout: Any) -> SolvedStep:
    if not isinstance(layout, dict):
        raise InvalidInput(f"layout is a {type(layout).__name__}, expected an object or null")
    _check_names(layout, {*_COLUMNS, "places", "lower_bound_bytes", "seconds"}, "layout")
    columns = {name: int_column(name, layout[name], _LEAST[name], LARGEST) for name in _COLUMNS}
    check_int("lower_bound_bytes", layout["lower_bound_bytes"], 0)
    for first, second in (_COLUMNS[:2], _COLUMNS[2:]):
        if len(columns[first]) != len(columns[second]):
            raise InvalidInput(f"{first} and {second} differ in length")
    solved = SolvedStep(
        **columns,
        places=tuple(_place(place) for place in _list("places", layout["places"])),
        lower_bound_bytes=layout["lower_bound_bytes"],
        seconds=check_number("seconds", layout["seconds"]),
    )
    if solved.mark_values.max(initial=-1) >= len(solved.places):
        raise InvalidInput(
            f"a mark is of place {solved.mark_values.max()}; there are {len(solved.places)}"
        )
    if solved.peak_bytes < solved.lower_bound_bytes:
        raise InvalidInput(
            f"the peak is {solved.peak_bytes:,} bytes, below its bound {solved.lower_bound_bytes:,}"
        )
    return solved


def _place(value: Any) -> Place:
    row = _list("a place", value)
    if len(row) != 5 or not all(isinstance(row[i], str) for i in (0, 1, 4)):
        raise InvalidInput(f"a place is {value!r}; it must be [phase, stage, block, tile, op]")
    if row[0] not in PHASES:
        raise InvalidInput(f"a place has phase {row[0]!r}; it must be one of {PHASES}")
    block, tile = (int(number) for number in int_column("a place", row[2:4], -1, LARGEST))
    return Place(row[0], row[1], block, tile, row[4])


def _list(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise InvalidInput(f"{name} is a {type(value).__name__}, expected a list")
    return value


def _check_names(record: dict[str, Any], wanted: set[str], where: str) -> None:
    missing, extra = sorted(wanted - record.keys()), sorted(record.keys() - wanted)
    if missing or extra:
        raise InvalidInput(f"{where} has missing fields {missing} and unknown fields {extra}")
