"""The machine that runs the tests is measured, and a plan is made with its file."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from memo_planner.cli._app import app
from memo_planner.hardware import MachineFile
from memo_train.device import get_cpu_device


def test_this_machine_is_measured_into_a_file_that_plans_take(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    done = CliRunner().invoke(app, ["hardware", "--measure", "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert "measured: one rank" in done.output
    measured = MachineFile.load(path)
    shares = measured.efficiency
    assert 0 < shares.linear <= 1
    assert 0 < shares.attention <= 1
    assert measured.launch_s > 0
    assert shares.tile_issue_s == 0  # on the CPU nothing runs behind the thread that asks
    for rate in vars(measured.link_rates).values():
        assert rate >= 1
    assert all(each.source for each in measured.hardware.sources)
    assumed = measured.hardware.source_of("inter_node_bytes_per_s")
    assert assumed.startswith("as cpu: assumption")
    assert get_cpu_device().counters().host_used_bytes == 0
    options = ["--model", "7b", "--seq-len", "4K", "--gpus", "1", "--dtype-bytes", "4"]
    room = ["--device-gib", "400", "--host-gib", "900", "--json"]
    made = CliRunner().invoke(app, ["make", *options, *room, "--hardware", str(path)])
    assert made.exit_code == 0, made.output
    assert json.loads(made.output)["setting"]["efficiency"].startswith("measured")
