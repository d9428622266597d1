"""Runs a script of this folder in a process of its own, whose memory nothing else has used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def rows_of(script: str, *arguments: str) -> list[dict[str, Any]]:
    """The JSON objects that it prints, one a line."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "planner")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
