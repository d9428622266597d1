"""The benchmark of fake steps on a small configuration: its JSON, trace and profile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from memo_planner.trace import ProfileFile, Trace

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fake_trace.py"
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "model_type": "llama",
}


@pytest.mark.slow
def test_a_configuration_becomes_a_trace_and_a_profile(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.json" for name in ("config", "trace", "profile", "json")}
    paths["config"].write_text(json.dumps(SIZES))
    options = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    command = [sys.executable, str(SCRIPT), *options, "--tokens", "4096"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1100)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads(paths["json"].read_text())
    peak = {row["mode"]: row["device_peak_bytes"] for row in written["rows"]}
    assert 0 < peak["tiled"] < peak["plain"]
    trace = Trace.load(paths["trace"])
    assert (trace.source.kind, trace.source.tokens, trace.source.tile_tokens) == ("fake", 4096, 256)
    assert ProfileFile.load(paths["profile"]).profile.num_blocks == 2
