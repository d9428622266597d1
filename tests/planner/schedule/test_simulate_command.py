"""What `memo-plan simulate` prints, writes and refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memo_planner import Limits, Plan, make_plan
from memo_planner.cli import app
from memo_planner.schedule import Schedule, Speeds, schedule_of, simulate, svg_text
from tests.planner.cases import GIB, large_profile

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def plan() -> Plan:
    limits = Limits(device_bytes=None, host_bytes=200 * GIB)
    return make_plan(large_profile(num_blocks=6), 65_536, limits, alpha=0.5, tile_tokens=8192)


@pytest.fixture
def saved(plan: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    plan.save(path)
    return path


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["simulate", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output if code == 0 else done.stderr


def test_the_table_and_the_timeline(plan: Plan, saved: Path) -> None:
    text = run(saved, "--tflop", "1000", "--peak-tflop-s", "312")
    step = simulate(schedule_of(plan), Speeds.of_link(plan.profile.link))
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert f"{step.step_s:.4g} s" in rows["step"]
    assert f"{1000 / (312 * step.step_s):.2%}" in rows["MFU"]
    assert "attention backward of block 5" in rows["device peak"]
    lanes = {
        line.split("|")[0].strip(): line.split("|")[1] for line in rows.values() if "|" in line
    }
    assert list(lanes) == [
        *["compute", "device to host", "host to device", "device bytes", "host bytes"]
    ]
    assert {len(lane) for lane in lanes.values()} == {72}
    assert lanes["compute"].strip("F").strip("B") == "", "forward, then backward"
    assert lanes["host bytes"].count("#") < 40


def test_json_holds_the_step(plan: Plan, saved: Path) -> None:
    document = json.loads(run(saved, "--json"))
    step = simulate(schedule_of(plan), Speeds.of_link(plan.profile.link))
    assert document["step_s"] == step.step_s
    assert document["stall_s_by_cause"] == step.stall_s_by_cause
    assert document["mfu"] is None
    assert document["device"]["peak_bytes"] == max(document["device"]["bytes"])
    assert document["host"]["peak_bytes"] == plan.prediction.host_peak_bytes
    assert len(document["host"]["bytes"]) == len(document["host"]["times_s"])


def test_a_slower_link_is_slower(saved: Path) -> None:
    steps = [json.loads(run(saved, "--json", "--link-gb-s", s))["step_s"] for s in (1, 4, 16)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[2]


def test_the_schedule_and_the_picture_are_written(plan: Plan, saved: Path, tmp_path: Path) -> None:
    svg, schedule = tmp_path / "step.svg", tmp_path / "schedule.json"
    run(saved, "--svg", svg, "-o", schedule)
    assert Schedule.load(schedule) == schedule_of(plan)
    root = ET.fromstring(svg.read_text(encoding="utf-8"))
    texts = {node.text for node in root.iter(f"{SVG}text")}
    assert {"compute", "device to host", "host to device", "device bytes"} <= texts
    width = float(root.attrib["width"])
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.attrib.get("x", 0)) + float(bar.attrib["width"]) <= width


def test_names_in_the_picture_are_escaped(plan: Plan) -> None:
    schedule = schedule_of(plan)
    object.__setattr__(schedule, "model", "<a&b>")
    root = ET.fromstring(svg_text(simulate(schedule, Speeds.of_link(plan.profile.link))))
    assert any("<a&b>" in (node.text or "") for node in root.iter(f"{SVG}text"))


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf"])
def test_a_bad_speed_is_named(saved: Path, speed: str) -> None:
    assert "d2h_bytes_per_s" in run(saved, "--link-gb-s", speed, code=2)


def test_bad_files_are_named(saved: Path, tmp_path: Path) -> None:
    assert "cannot be read" in run(tmp_path / "no.json", code=2)
    assert "cannot be written" in run(saved, "--svg", tmp_path / "no" / "step.svg", code=2)
    document = json.loads(saved.read_text())
    saved.write_text(json.dumps(document | {"version": 99}))
    assert "version is 99" in run(saved, code=2)
