"""Traces in JSON and CSV: what was written is read, anything else is refused by name."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memo_planner import InvalidInput, PlanFileError
from memo_planner.trace import BEFORE, PHASES, Requests, Trace, TraceSource, read_csv, write_csv

FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
SOURCE = TraceSource(
    kind="recorded",
    model="Toy",
    model_hash="abc",
    device="cpu",
    batch=1,
    tokens=8,
    num_blocks=2,
    tile_tokens=4,
    policy_hash="none",
)


def requests() -> Requests:
    return Requests(
        ids=np.array([3, 1, 2]),
        malloc_times=np.array([0, 1, 2]),
        free_times=np.array([4, 3, 5]),
        size_bytes=np.array([64, 128, 2**40]),
        phases=np.array([BEFORE, PHASES.index("forward"), PHASES.index("optimizer")]),
        blocks=np.array([-1, 0, 1]),
        tiles=np.array([-1, 7, -1]),
        ops=np.array([0, 1, 0]),
        op_names=("", 'a "name", with a comma'),
        end_time=5,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def test_a_trace_is_read_as_it_was_written(path: Path) -> None:
    trace = Trace.of(SOURCE, requests())
    trace.save(path)
    assert Trace.load(path) == trace
    assert Trace.load(path).requests != replace(requests(), end_time=6)


def test_a_table_is_read_as_it_was_written(path: Path) -> None:
    write_csv(requests(), path)
    assert path.read_text().splitlines()[:2] == [
        "id,lower,upper,size,phase,block,tile,op",
        "3,0,4,64,before,-1,-1,",
    ]
    assert read_csv(path) == requests()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("version", 2, "version is 2, expected 1"),
        ("version", True, "version is True, expected 1"),
        ("format", "memo-plan", "format is 'memo-plan', expected 'memo-trace'"),
        ("requests_hash", "00", "requests_hash is '00'"),
        ("inputs_hash", None, "inputs_hash is None"),
        ("size_bytes", [64, 128, 256], "requests_hash"),
        ("size_bytes", [64, -1, 256], r"size_bytes\[1\] is -1"),
        ("size_bytes", {"a": 1}, "must be a list"),
        ("end_time", "5", "must be an int"),
        ("op_names", "", "tuple of strings"),
        ("source", {}, "missing fields"),
        ("more", 1, r"unknown fields \['more'\]"),
    ],
)
def test_a_changed_trace_is_refused(path: Path, name: str, value: Any, message: str) -> None:
    Trace.of(SOURCE, requests()).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(PlanFileError, match=message):
        Trace.load(path)


def test_a_trace_of_something_else_is_not_the_same() -> None:
    trace = Trace.of(SOURCE, requests())
    with pytest.raises(InvalidInput, match="inputs_hash"):
        replace(trace, source=replace(SOURCE, tokens=9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 is None"),
        ("id,lower,upper,size\n1,1,2,64\n", "line 1 is"),
        ("HEAD\n1,1,2,64,forward,0,0\n", "line 2 has 7 values"),
        ("HEAD\n1,1,2,nan,forward,0,0,\n", "line 2: size is 'nan'"),
        ("HEAD\n1,1,2,1e9,forward,0,0,\n", "line 2: size is '1e9'"),
        ("HEAD\n1,1,2,1_000,forward,0,0,\n", "line 2: size is '1_000'"),
        ("HEAD\n1,1,2,99999999999999999999,forward,0,0,\n", "line 2: size is"),
        ("HEAD\n1,1,2,64,middle,0,0,\n", "line 2: phase is 'middle'"),
        ("HEAD\n1,3,2,64,forward,0,0,\n", "request 1 is freed at 2, but made at 3"),
        ("HEAD\n1,1,2,64,forward,0,0,\n1,1,2,64,forward,0,0,\n", "the id 1 occurs twice"),
        ("HEAD\n1,1,2,-64,forward,0,0,\n", r"size_bytes\[0\] is -64"),
        ('HEAD\n1,1,2,64,forward,0,0,"open\n', "unexpected end of data"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(path: Path, text: str, message: str) -> None:
    path.write_text(text.replace("HEAD", "id,lower,upper,size,phase,block,tile,op"))
    with pytest.raises(PlanFileError, match=message):
        read_csv(path)


def test_files_that_are_no_text_or_not_there(path: Path) -> None:
    with pytest.raises(PlanFileError, match="cannot be read"):
        read_csv(path)
    with pytest.raises(PlanFileError, match="cannot be read"):
        Trace.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanFileError, match="not UTF-8"):
        read_csv(path)
    with pytest.raises(PlanFileError, match="not a JSON document"):
        Trace.load(path)


FIELDS = ("format", "version", "source", "end_time", "op_names", "ids", "free_times", "inputs_hash")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@FUZZ
@given(st.sampled_from(FIELDS), _JSON)
def test_any_value_in_any_field_is_read_or_refused(path: Path, name: str, value: Any) -> None:
    Trace.of(SOURCE, requests()).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with contextlib.suppress(PlanFileError):
        assert Trace.load(path).requests == requests()


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for read in (read_csv, Trace.load):
        with pytest.raises(PlanFileError):
            read(path)


_CELL = st.integers(-3, 9).map(str) | st.sampled_from(["", "nan", "forward", "before", "1e3", '"'])


@FUZZ
@given(st.lists(st.lists(_CELL, min_size=7, max_size=9), max_size=4))
def test_any_table_is_read_or_refused(path: Path, rows: list[list[str]]) -> None:
    lines = ["id,lower,upper,size,phase,block,tile,op", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines))
    try:
        found = read_csv(path)
    except PlanFileError:
        return
    assert len(found) <= len(rows)
    assert (found.free_times > found.malloc_times).all()
