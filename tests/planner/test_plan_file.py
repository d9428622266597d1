"""A plan file comes back as it was, and a damaged one is refused with its reason."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memo_planner import Limits, Plan, PlanFileError, make_plan
from memo_planner.hardware import MachineFile
from memo_planner.schedule import Operation, Schedule
from memo_planner.trace import ProfileFile, ProfileSource, Requests, Trace, TraceSource
from tests.planner.cases import small_profile

fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def new_plan() -> Plan:
    return make_plan(small_profile(), 10, Limits(device_bytes=1700, host_bytes=None), tile_tokens=4)


PLAN = new_plan()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    PLAN.save(path)
    return path


def document(saved: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(saved.read_text())
    return loaded


def refused(saved: Path, changed: object) -> str:
    path = saved.with_name("changed.json")
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(PlanFileError) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_round_trip(saved: Path) -> None:
    assert Plan.load(saved) == PLAN
    assert Plan.load(str(saved)).inputs_hash == PLAN.inputs_hash


def test_other_format_or_version(saved: Path) -> None:
    changed = {**document(saved), "version": 1}
    assert "version is 1, expected 7" in refused(saved, changed)
    assert "format is 'x', expected 'memo-plan'" in refused(saved, {**changed, "format": "x"})
    assert "version is True" in refused(saved, {**document(saved), "version": True})


def test_wrong_hash_names_both(saved: Path) -> None:
    changed = document(saved)
    changed["inputs_hash"] = "0" * 64
    message = refused(saved, changed)
    assert "0" * 64 in message
    assert PLAN.inputs_hash in message


@pytest.mark.parametrize("part", ["profile", "limits"])
def test_changed_inputs_do_not_match_the_hash(saved: Path, part: str) -> None:
    changed = document(saved)
    field = {"profile": "state_bytes", "limits": "device_bytes"}[part]
    changed[part][field] += 1
    assert "its inputs give" in refused(saved, changed)


def test_changed_policy_does_not_match_the_prediction(saved: Path) -> None:
    changed = document(saved)
    block = changed["policy"]["blocks"][0]
    block["x"] = "swap" if block["x"] == "keep" else "keep"
    assert "prediction." in refused(saved, changed)


def test_missing_and_unknown_fields_are_named(saved: Path) -> None:
    changed = document(saved)
    del changed["profile"]["batch"]
    changed["profile"]["batches"] = 1
    assert "missing fields ['batch'] and unknown fields ['batches']" in refused(saved, changed)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("profile", "batch"), "1", "plan.profile.batch is '1', expected int"),
        (("profile", "batch"), True, "plan.profile.batch is True, expected int"),
        (("profile", "batch"), 1.0, "plan.profile.batch is 1.0, expected int"),
        (("profile", "times"), [], "plan.profile.times is [], expected an object"),
        (("profile", "peaks"), {}, "plan.profile.peaks is {}, expected a list"),
        (("limits", "host_bytes"), 0, "Limits.host_bytes is 0"),
        (("policy", "blocks", 0, "x"), "disk", "x is 'disk', expected one of ['keep', 'swap',"),
        (("policy", "blocks", 0, "x"), "recompute", "BlockPolicy.x is recompute"),
        (("policy", "blocks"), [], "Policy.blocks is empty"),
        (("prediction", "binds"), ["luck"], "Prediction.binds"),
        (("prediction", "extra_s"), 1e999, "not a JSON document: Infinity"),
        (("prediction", "extra_s"), float("nan"), "not a JSON document: NaN"),
    ],
)
def test_wrong_values_are_named(
    saved: Path, path: tuple[str | int, ...], value: object, message: str
) -> None:
    changed: Any = document(saved)
    record = changed
    for key in path[:-1]:
        record = record[key]
    record[path[-1]] = value
    assert message in refused(saved, changed)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "[" * 100_000, '{"a": 1, "a": 2}', "9" * 5000, "\ud800"]
)
def test_what_is_not_a_plan_is_refused(saved: Path, text: str) -> None:
    path = saved.with_name("text.json")
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(PlanFileError):
        Plan.load(path)


def test_missing_file_and_folder(saved: Path) -> None:
    for path in (saved.with_name("none.json"), saved.parent):
        with pytest.raises(PlanFileError, match="cannot be read"):
            Plan.load(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(record: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = record.items() if isinstance(record, dict) else enumerate(record)
    found = []
    for key, value in items:
        found.append((*at, key))
        if isinstance(value, dict | list):
            found += places(value, (*at, key))
    return found


@fuzz
@given(data=st.data())
def test_any_value_replaced_is_refused_or_equal(saved: Path, data: st.DataObject) -> None:
    changed: Any = document(saved)
    place = data.draw(st.sampled_from(places(changed)))
    record = changed
    for key in place[:-1]:
        record = record[key]
    record[place[-1]] = data.draw(json_values)
    path = saved.with_name("fuzzed.json")
    path.write_text(json.dumps(changed))
    try:
        loaded = Plan.load(path)
    except PlanFileError:
        return
    same_but_binds = {**vars(loaded.prediction), "binds": PLAN.prediction.binds}
    assert same_but_binds == vars(PLAN.prediction)
    assert (loaded.profile, loaded.policy, loaded.limits) == (
        PLAN.profile,
        PLAN.policy,
        PLAN.limits,
    )


@fuzz
@given(start=st.integers(0, 3000), length=st.integers(0, 50), insert=st.binary(max_size=20))
def test_damaged_bytes_never_raise_anything_else(
    saved: Path, start: int, length: int, insert: bytes
) -> None:
    whole = saved.read_bytes()
    path = saved.with_name("damaged.json")
    path.write_bytes(whole[:start] + insert + whole[start + length :])
    with contextlib.suppress(PlanFileError):
        Plan.load(path)


def test_the_documented_example_loads_and_hashes_as_documented(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    text = page.split("```json\n")[1].split("```")[0]
    path = tmp_path / "example.json"
    path.write_text(text)
    example = json.loads(text)
    hashed = {name: example[name] for name in ("limits", "profile")}
    hashed["tokens"] = example["policy"]["tokens"]
    plain = json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode()
    assert Plan.load(path).inputs_hash == hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize(
    "kind",
    [ProfileFile, ProfileSource, MachineFile, Trace, TraceSource, Requests, Schedule, Operation],
)
def test_every_field_of_every_file_is_documented(kind: type) -> None:
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    inside = {"requests"}  # its columns are fields of the file
    missing = [f.name for f in fields(kind) if f.name not in inside and f"`{f.name}`" not in page]
    assert missing == []
