"""A limit under which a plan was accepted is held (numerics level 2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NUM_SEEDS = 100


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 100 models are wrapped: about eight minutes
def test_no_step_runs_out_of_memory_after_its_plan_was_accepted() -> None:
    """Random models, lengths, batches, tiles and limits; a refusal comes before the step."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "planner")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("random_limits.py")), "0", str(NUM_SEEDS)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == NUM_SEEDS
    assert not [each for each in found if each["outcome"] == "out of memory"]
    assert Counter(each["outcome"] for each in found)["held"] >= NUM_SEEDS // 3
