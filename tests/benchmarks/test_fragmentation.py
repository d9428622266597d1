"""The benchmark of fragmentation on a folder of traces: its table and its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fragmentation.py"
ROWS = "id,lower,upper,size\n0,1,3,62914560\n1,3,9,31457280\n2,4,9,41943040\n3,5,9,31457280\n"


def test_every_recorded_step_of_a_folder_is_served_by_every_allocator(tmp_path: Path) -> None:
    """60 MiB, then 30, 40 and 30: later steps of the caching allocator take 130 (test_replay)."""
    (tmp_path / "hf_step.csv").write_text(ROWS)
    (tmp_path / "puzzle.csv").write_text(ROWS)
    out = tmp_path / "out.json"
    command = [sys.executable, str(SCRIPT), "--no-fake", "--no-real", "--json", str(out)]
    command += ["--csv-traces", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1100)
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = json.loads(out.read_text())["rows"]
    assert row["trace"] == "hf_step"
    reserved = {run["allocator"]: run["reserved_peak_bytes"] // 2**20 for run in row["runs"]}
    assert reserved["caching allocator"] == 130
    assert reserved["layout, 512 B"] == reserved["layout, 64 B"] == 100
    lines = done.stdout.splitlines()
    assert any(line.startswith("hf_step") and "0.13 23.08%" in line for line in lines)
