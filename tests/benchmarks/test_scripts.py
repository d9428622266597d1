"""The benchmark scripts write the JSON that others read, here at sizes small enough for a test."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.job import MODES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run_script(name: str, folder: Path, *options: str) -> dict[str, Any]:
    path = folder / "out.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1100)
    assert done.returncode == 0, done.stderr[-3000:]
    written: dict[str, Any] = json.loads(path.read_text())
    assert written["commit"]
    assert "cores" in written["machine"]
    return written


@pytest.mark.slow
def test_longest_sequence_orders_the_modes(tmp_path: Path) -> None:
    shape = ["--layers", "4", "--hidden", "64", "--activation-mib", "12", "--alpha", "0"]
    written = run_script("longest_sequence", tmp_path, *shape)
    tokens = {mode: found["tokens"] for mode, found in written["modes"].items()}
    assert list(tokens) == list(MODES)
    assert 0 < tokens["plain"] < tokens["checkpoint"] < tokens["checkpoint_offload"]
    assert tokens["checkpoint_offload"] < tokens["memo"]
    for found in written["modes"].values():
        assert found["refused_tokens"] == found["tokens"] + 64
        assert found["activation_peak_bytes"] <= 12 * 2**20


@pytest.mark.slow
def test_step_time_gives_medians_and_equal_losses(tmp_path: Path) -> None:
    shape = ["--tokens", "256", "--layers", "2", "--hidden", "64", "--repeats", "3"]
    written = run_script("step_time", tmp_path, *shape)
    assert set(MODES) < set(written["modes"])
    assert 0 < written["attention_share"] < 1
    plain = written["modes"]["plain"]
    for mode in written["modes"].values():
        assert 0 < mode["min_seconds"] <= mode["seconds"] <= mode["max_seconds"]
        assert len(mode["losses"]) == mode["repeats"] == 3
        assert mode["losses"] == pytest.approx(plain["losses"], rel=1e-5)


@pytest.mark.slow
def test_peaks_do_not_grow_with_layers_when_nothing_is_kept(tmp_path: Path) -> None:
    """Level 2: four times the layers, the same device peak but for what is in flight."""
    shape = ["--layers", "2", "8", "--tokens", "1024", "--hidden", "64", "--tile-tokens", "128"]
    steps = run_script("peak_by_layers", tmp_path, *shape)["steps"]
    peak = {(step["mode"], step["layers"]): step["activation_peak_bytes"] for step in steps}
    x_bytes = 1024 * 64 * 4
    assert peak["checkpoint", 8] - peak["checkpoint", 2] >= 6 * x_bytes
    assert abs(peak["memo_recompute", 8] - peak["memo_recompute", 2]) <= 2 * x_bytes
