"""What `memo-plan show` prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memo_planner import Limits, Plan, make_plan
from tests.planner.cases import GIB, large_profile


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from memo_planner.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "60", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=environment,
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    limits = Limits(device_bytes=30 * GIB, host_bytes=30 * GIB)
    return make_plan(large_profile(num_blocks=12), 65_536, limits, tile_tokens=4096)


@pytest.fixture(scope="module")
def saved(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "plan.json"
    plan.save(path)
    return str(path)


def test_show_prints_header_table_totals_and_bars(plan: Plan, saved: str) -> None:
    done = run("show", saved)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == ("65B on one of 8: 12 blocks, batch 1, 65,536 tokens in 16 tiles of 4,096")
    assert lines[1] == "limits: device 30.0 GiB, host 30.0 GiB"
    assert " ".join(lines[3].split()) == (
        "blocks keep swap recompute x o kept on device swapped to host"
    )
    told = plan.prediction
    peak = f"device peak: {told.device_peak_bytes / GIB:.1f} GiB of 30.0 GiB, at "
    assert peak + told.device_peak_point in lines
    assert f"binds: {', '.join(told.binds) or 'nothing'}" in lines
    assert "\x1b" not in done.stdout


def test_rows_cover_all_blocks_and_bytes(plan: Plan, saved: str) -> None:
    shown = json.loads(run("show", saved, "--json").stdout)
    runs = shown["runs"]
    assert [row["first"] for row in runs] == [0, *(row["last"] + 1 for row in runs[:-1])]
    assert runs[-1]["last"] == 11
    for row in runs:
        for index in range(row["first"], row["last"] + 1):
            block = plan.policy.blocks[index]
            assert row["block"]["swap_tiles"] == block.swap_tiles
            assert row["block"]["x"] == block.x.value
    assert sum(row["swapped_bytes"] for row in runs) == plan.prediction.host_peak_bytes
    table = [line.split()[0] for line in run("show", saved).stdout.splitlines()[4 : 4 + len(runs)]]
    assert table == [
        f"{row['first']}-{row['last']}" if row["first"] < row["last"] else str(row["first"])
        for row in runs
    ]


def test_points_of_the_step_peak_where_the_prediction_says(plan: Plan, saved: str) -> None:
    shown = json.loads(run("show", saved, "--json").stdout)
    points = {point["name"]: point["device_bytes"] for point in shown["points"]}
    assert len(points) == 2 * 12 + 1
    told = plan.prediction
    assert points[told.device_peak_point] == max(points.values()) == told.device_peak_bytes
    assert shown["tokens"] == 65_536
    assert shown["prediction"]["binds"] == list(told.binds)


def test_bars_grow_with_bytes_and_stop_at_the_limit(plan: Plan, saved: str) -> None:
    lines = run("show", saved).stdout.split("device bytes over the step:\n")[1].splitlines()
    assert len(lines) == 25
    sizes = [(line.count("#"), float(line.split()[-2])) for line in lines]
    assert sorted(sizes, key=lambda pair: pair[1]) == sorted(sizes)
    assert all(line.count("|") == 1 for line in lines)
    assert max(count for count, _ in sizes) <= 40


@pytest.mark.parametrize("text", ["{}", "not json", '{"format": "memo-plan", "version": 9}'])
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    for arguments in (["show", str(path)], ["show", str(path), "--json"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"memo-plan: {path}: ")
        assert done.stderr.count("\n") == 1
