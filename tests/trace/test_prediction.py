"""What a plan predicts is what its step does (numerics level 2): bytes, copies, tiles, lengths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("plan_and_run.py")
ROOT = SCRIPT.parents[2]
PAGE_BYTES = 4096
CASES = ["recompute", "half", "swap", "short_last_tile", "planned"]
LONGEST = ["longest", "longest_of_small_tiles"]

Runs = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs() -> Runs:
    """The script's cases by name. Each ran under a cap equal to its plan's limit."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "planner")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("case", CASES + LONGEST)
def test_tiles_by_policy_equal_the_plan(case: str, runs: Runs) -> None:
    run = runs[case]
    assert run["tiles"] == run["planned_tiles"]
    assert sum(run["tiles"]) == 4 * run["num_tiles"]


def test_alpha_is_the_share_of_swapped_tiles(runs: Runs) -> None:
    shares = [runs[case]["tiles"][1] / sum(runs[case]["tiles"]) for case in CASES[:3]]
    assert shares == [0, 0.5, 1]


@pytest.mark.parametrize("case", LONGEST)
def test_host_bytes_of_groups_of_heads_are_the_prediction(case: str, runs: Runs) -> None:
    """The longest sequences attend by groups of heads, whose planes go and come several times."""
    run = runs[case]
    assert run["num_groups"] > 1
    assert 0.97 * run["predicted_host_bytes"] <= run["host_peak_bytes"]
    assert run["host_peak_bytes"] <= run["predicted_host_bytes"]
    assert run["host_bytes_in_forward"] < run["host_peak_bytes"]
    assert run["host_bytes_after"] == 0


@pytest.mark.parametrize("case", CASES)
def test_host_bytes_equal_the_prediction(case: str, runs: Runs) -> None:
    """Copies both ways are equal and, rounded up to pages, the predicted bytes; nothing is left."""
    run = runs[case]
    assert run["d2h_bytes"] == run["h2d_bytes"]
    predicted = run["predicted_host_bytes"]
    assert run["d2h_bytes"] <= run["host_peak_bytes"] <= predicted
    assert run["host_peak_bytes"] >= 0.97 * predicted
    rounding = run["host_peak_bytes"] - run["d2h_bytes"]
    assert 0 <= rounding < PAGE_BYTES * max(run["d2h_copies"], 1)
    assert run["host_bytes_in_forward"] == run["host_peak_bytes"]
    assert run["host_bytes_after"] == 0


@pytest.mark.parametrize("case", CASES + LONGEST)
def test_device_peak_is_at_most_the_prediction(case: str, runs: Runs) -> None:
    run = runs[case]
    assert run["device_peak_bytes"] <= run["predicted_device_bytes"]
    assert run["high_water_bytes"] <= run["limit_bytes"]


@pytest.mark.parametrize("case", CASES + LONGEST)
def test_the_prediction_is_at_most_5_percent_above(case: str, runs: Runs) -> None:
    run = runs[case]
    assert run["device_peak_bytes"] >= run["predicted_device_bytes"] / 1.05


@pytest.mark.parametrize("case", LONGEST)
def test_the_longest_length_runs(case: str, runs: Runs) -> None:
    """The length that a refusal names was planned and trained under the same cap."""
    run = runs[case]
    assert run["tokens"] > 1024
    assert run["room_bytes"] <= run["limit_bytes"]
