"""Schedules as data: what they refuse, and their files."""

from __future__ import annotations

import contextlib
import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memo_planner import InvalidInput, Limits, PlanFileError, make_plan
from memo_planner.schedule import Kind, Operation, Phase, Schedule, schedule_of
from tests.planner.cases import small_profile
from tests.planner.schedule.random_schedules import schedule_from, schedules


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    limits = Limits(device_bytes=None, host_bytes=None)
    return schedule_of(make_plan(small_profile(), 8, limits, alpha=0.5, tile_tokens=2))


@pytest.fixture
def saved(schedule: Schedule, tmp_path: Path) -> Path:
    path = tmp_path / "schedule.json"
    schedule.save(path)
    return path


def test_a_file_gives_the_schedule_again(schedule: Schedule, saved: Path) -> None:
    assert Schedule.load(saved, inputs_hash=schedule.inputs_hash) == schedule


def test_another_plan_has_another_hash(schedule: Schedule, saved: Path) -> None:
    limits = Limits(device_bytes=None, host_bytes=None)
    other = schedule_of(make_plan(small_profile(), 8, limits, alpha=1.0, tile_tokens=2))
    assert other.inputs_hash != schedule.inputs_hash
    with pytest.raises(PlanFileError, match=f"{schedule.inputs_hash}.*{other.inputs_hash}"):
        Schedule.load(saved, inputs_hash=other.inputs_hash)


def damaged(document: dict, place: str, value: object) -> dict:
    *path, last = place.split(".")
    inner = document
    for name in path:
        inner = inner[int(name)] if name.isdigit() else inner[name]
    inner[last] = value
    return document


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("version", 2, "version is 2, expected 1"),
        ("version", True, "version is True"),
        ("format", "memo-plan", "format is 'memo-plan', expected 'memo-schedule'"),
        ("tokens", -1, "Schedule.tokens is -1"),
        ("state_bytes", 1.5, "state_bytes is 1.5, expected int"),
        ("operations", [], "operations is empty"),
        ("extra", 1, "unknown fields"),
        ("operations.1.kind", "teleport", "teleport"),
        ("operations.1.seconds", -1.0, "Operation.seconds is -1"),
        ("operations.1.waits_for", [10**6], "waits for operation 1000000"),
        ("operations.1.waits_for", [1], "waits for operation 1"),
        ("operations.1.waits_for", [-1], "waits_for is -1"),
        ("operations.1.device_alloc_bytes", 2**70, "must be from 0 to"),
        ("operations.1.device_alloc_bytes", 1, "a step must free what it allocates"),
        ("operations.1.num_bytes", 5, "it moves none"),
        ("operations.1.block", -3, "Operation.block is -3"),
        ("operations.1.name", "", "non-empty"),
    ],
)
def test_damage_is_named(saved: Path, place: str, value: object, message: str) -> None:
    document = damaged(json.loads(saved.read_text()), place, value)
    saved.write_text(json.dumps(document))
    with pytest.raises(PlanFileError, match=message):
        Schedule.load(saved)


def test_nan_is_refused(saved: Path) -> None:
    saved.write_text(saved.read_text().replace('"flops": null', '"flops": NaN'))
    with pytest.raises(PlanFileError, match="NaN"):
        Schedule.load(saved)


@settings(deadline=None)
@given(text=st.text() | st.binary().map(lambda b: b.decode("latin-1")))
def test_any_text_is_refused_clearly(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "s.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PlanFileError):
        Schedule.load(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
_PLACES = st.sampled_from(
    ["version", "model", "tokens", "state_bytes", "flops", "inputs_hash", "operations"]
    + [f"operations.1.{field.name}" for field in fields(Operation)]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=_PLACES, value=_JSON)
def test_any_value_anywhere_is_read_or_refused(saved: Path, place: str, value: object) -> None:
    path = saved.with_name("fuzzed.json")
    path.write_text(json.dumps(damaged(json.loads(saved.read_text()), place, value)))
    with contextlib.suppress(PlanFileError):
        assert Schedule.load(path).version == 1


@settings(deadline=None)
@given(schedules())
def test_any_schedule_survives_its_file(tmp_path_factory, schedule: Schedule) -> None:
    path = tmp_path_factory.mktemp("any") / "s.json"
    schedule.save(path)
    assert Schedule.load(path) == schedule


def test_only_compute_takes_time() -> None:
    with pytest.raises(InvalidInput, match=r"a wait has 1\.0 s"):
        Operation(name="t", kind=Kind.WAIT, phase=Phase.FORWARD, seconds=1.0)


def test_a_schedule_needs_operations() -> None:
    with pytest.raises(InvalidInput, match="operations is empty"):
        schedule_from(())


def test_an_operation_prints_as_a_sentence() -> None:
    one = Operation(
        name="q, k, v",
        kind=Kind.TO_DEVICE,
        phase=Phase.BACKWARD,
        block=3,
        tile=2,
        num_bytes=4096,
        device_alloc_bytes=4096,
        waits_for=(17,),
    )
    assert str(one) == "backward block 3 tile 2: copy to device q, k, v 4,096 B, waits for 17"
