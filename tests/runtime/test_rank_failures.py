"""One rank fails in mid-step: all ranks end soon, and torchrun says who failed of what."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runtime.ranks import ROOT

SCRIPT = Path(__file__).with_name("failing_rank.py")
MOST_S = 30
"""From the failure to the end of all ranks."""
STARTS_S = 60
"""Most seconds that two processes take to import, wrap and run a step on a busy machine."""
_NOTE = "rank 1 of 2 failed in mid-step: ValueError: out of luck"


@pytest.mark.parametrize(
    ("how", "where", "message"),
    [
        pytest.param("raises", "backward", "out of luck on purpose", marks=pytest.mark.slow),
        # Of rank 0, which would wait for the other one; that is still alive.
        pytest.param("lingers", "forward", _NOTE, marks=pytest.mark.slow),
        ("lingers", "backward", _NOTE),
        ("dies", "forward", "Signal 9 (SIGKILL)"),
    ],
)
def test_all_ranks_end_with_the_message_of_the_one(how: str, where: str, message: str) -> None:
    began = time.monotonic()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(SCRIPT), how, where],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=STARTS_S + MOST_S,
    )
    took_s = time.monotonic() - began
    assert done.returncode != 0
    assert message in done.stderr, done.stderr[-3000:]
    print(f"{how} in {where}: {took_s:.1f} s, all in all")
