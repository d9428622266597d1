"""The demo runs to its table; here with a model and a cap small enough for a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.job import MODES
from memo_planner import Plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_ends_with_a_table_of_all_modes(tmp_path: Path) -> None:
    options = ["--layers", "4", "--hidden", "64", "--activation-mib", "12"]
    options += ["--training-seconds", "1", "--out", str(tmp_path / "demo")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith(MODES)}
    assert rows.keys() == set(MODES)
    longest = {mode: int(row.split()[1].replace(",", "")) for mode, row in rows.items()}
    assert longest["memo"] > longest["checkpoint_offload"] > longest["checkpoint"]
    assert longest["checkpoint"] > longest["plain"] > 0
    assert "out of memory" in rows["checkpoint"]
    assert "out of memory" not in rows["memo"]
    assert all(float(row.split()[-1]) < 1e-5 for row in rows.values())
    plan = Plan.load(tmp_path / "demo" / "plan.json")
    assert plan.policy.tokens == longest["memo"]
    state = json.loads((tmp_path / "demo" / "trainer_state.json").read_text())
    losses = [row["loss"] for row in state["log_history"] if "loss" in row]
    assert losses[-1] < losses[0]
