"""The benchmark that decides which kernels are used, on sizes that take no time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memo_train.kernels._launch import DTYPES
from memo_train.kernels._peers import OPERATIONS
from memo_train.kernels._timings import faster_on, load_timings

pytestmark = pytest.mark.usefixtures("toolkit")

SIZES = {"tokens": 4, "hidden": 64, "ffn": 96, "heads": 2, "head_dim": 32}


def test_benchmark_times_everything_and_writes_what_was_measured(tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={size}" for name, size in SIZES.items()]
    command = [sys.executable, "-W", "error", "-m", "memo_train.kernels.benchmark", *options]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--device=cpu", "--repeats=2"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    path = tmp_path / "memo-train" / "kernels.json"
    assert f"written to {path}" in done.stdout
    timings = load_timings(path)
    timed = {(timing.operation, timing.dtype) for timing in timings}
    assert timed == {(name, dtype) for name in OPERATIONS for dtype in DTYPES.values()}
    assert all(timing.device == "cpu" and timing.sizes == SIZES for timing in timings)
    assert all(0 < timing.kernel_s < 10 and 0 < timing.torch_s < 10 for timing in timings)
    rows = [line.split() for line in done.stdout.splitlines()[2:-1]]
    assert len(rows) == len(timed)
    assert {used for *_, used in rows} == {"torch"}  # it is the CPU
    assert faster_on("cpu", timings) == {}
