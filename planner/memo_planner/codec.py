"""Frozen dataclasses to JSON and back, with every field and type checked on the way in."""

from __future__ import annotations

import functools
import hashlib
import json
import types
import typing
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from memo_planner.errors import InvalidInput, PlanFileError

_T = TypeVar("_T")
_PLAIN: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,)}


def encode(value: Any) -> Any:
    """`value` as JSON types: dataclasses become objects, tuples lists, enums their values."""
    # Most are numbers, and a plan's profile has thousands: it is encoded whenever one is made.
    if type(value) in _PLAIN:
        return value
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def decode(kind: type[_T], value: object, where: str) -> _T:
    """The dataclass `kind` from JSON types; `where` names the place in messages.

    Raises: InvalidInput on a missing or extra field, a wrong type, or a value it refuses.
    """
    return typing.cast(_T, _decode(kind, value, where))


def _decode(kind: Any, value: object, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _decode_list(typing.get_args(kind)[0], value, where)
    if origin in (types.UnionType, typing.Union):
        inner = next(arg for arg in typing.get_args(kind) if arg is not types.NoneType)
        return None if value is None else _decode(inner, value, where)
    if is_dataclass(kind):
        return _decode_record(kind, value, where)
    if issubclass(kind, Enum):
        return _decode_enum(kind, value, where)
    # True is an int to `isinstance`.
    if isinstance(value, bool) or not isinstance(value, _PLAIN[kind]):
        raise InvalidInput(f"{where} is {_shown(value)}, expected {kind.__name__}")
    return value


def _decode_list(kind: Any, value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise InvalidInput(f"{where} is {_shown(value)}, expected a list")
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, item in enumerate(value))


def _decode_record(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise InvalidInput(f"{where} is {_shown(value)}, expected an object")
    hints = _hints(kind)
    names = hints.keys()
    missing, extra = sorted(names - value.keys()), sorted(value.keys() - names)
    if missing or extra:
        raise InvalidInput(f"{where} has missing fields {missing} and unknown fields {extra}")
    return kind(**{name: _decode(hints[name], value[name], f"{where}.{name}") for name in names})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields; finding them takes longer than decoding a record."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _decode_enum(kind: type[Enum], value: object, where: str) -> Enum:
    allowed = [member.value for member in kind]
    if not isinstance(value, str) or value not in allowed:
        raise InvalidInput(f"{where} is {_shown(value)}, expected one of {allowed}")
    return kind(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def hash_of(parts: Any) -> str:
    """sha256, hexadecimal, of JSON types, whatever the order of their names.

    Raises: ValueError on NaN.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write one JSON object, readable. Raises: OSError; ValueError on NaN."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_document(path: Path, **expected: str | int) -> dict[str, Any]:
    """Read one JSON object that has the `expected` fields (`format`, `version`), among others.

    Raises: PlanFileError: unreadable, not JSON, NaN, repeated names, another format or version.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except OSError as error:
        raise PlanFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PlanFileError(f"{path}: not a JSON document: {error}") from error
    if not isinstance(document, dict):
        raise PlanFileError(f"{path}: holds {_shown(document)}, expected an object")
    for key, value in expected.items():
        # True equals 1 to Python, and is no version.
        if document.get(key) != value or isinstance(document.get(key), bool):
            raise PlanFileError(f"{path}: {key} is {document.get(key)!r}, expected {value!r}")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json by itself takes the last of several equal names.
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError(f"an object repeats a name: {sorted(name for name, _ in pairs)}")
    return record


def _no_constant(text: str) -> float:
    # json by itself takes NaN and Infinity.
    raise ValueError(f"{text} is not a number that a plan may hold")
