"""The runtime at planned addresses of the CUDA allocator, on a simulated machine.

Numerics level 1 and 3: bitwise equal to keep in every step, served by size or by layout.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cuda.compile import Compiler
from tests.cuda.run_check import run_script

SCRIPT = Path(__file__).with_name("planned_runtime.py")


@pytest.mark.parametrize("seed", range(3))
def test_steps_go_as_planned_and_keep_every_bit(compiler: Compiler, seed: int) -> None:
    said = run_script(SCRIPT, str(compiler.extension()), str(seed))
    *policies, machine = map(json.loads, said.splitlines())
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
