"""The runtime at planned addresses of the CUDA allocator, on a simulated machine.

Numerics level 1 and 3: bitwise equal to keep in every step, served by size or by layout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.compile import Compiler

SCRIPT = Path(__file__).with_name("planned_runtime.py")
ROOT = SCRIPT.parents[2]


@pytest.mark.parametrize("seed", range(3))
def test_steps_go_as_planned_and_keep_every_bit(compiler: Compiler, seed: int) -> None:
    command = [sys.executable, str(SCRIPT), str(compiler.extension()), str(seed)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    *policies, machine = map(json.loads, done.stdout.splitlines())
    assert machine["found"] == []
    assert [each["policy"] for each in policies] == ["swap", "mixed", "recompute"]
    copies = 0
    for each in policies:
        assert (each["state"], each["num_steps"]) == ("planned", 11)
        assert each["planned"] == 11 * each["num_requests"] > 0
        assert (each["unplanned"], each["missing"]) == (0, 0)
        assert each["peak_above_bound_bytes"] == 0
        assert (each["address_rest"], each["size_rest"]) == (0, 0)
        assert each["num_copies"] > copies + 50
        copies = each["num_copies"]
