"""Runs one check of a program of C++ checks, or a Python script, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT_S = 600


def run_check(program: Path, name: str, *seeds: int) -> str:
    """The output of check `name`, which must hold. seeds: the first, and how many, if any."""
    command = [str(program), name, *map(str, seeds)]
    # A thread sanitizer gives up after a fork unless told otherwise.
    env = {**os.environ, "TSAN_OPTIONS": "die_after_fork=0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
    assert f"{name} holds" in done.stdout
    return done.stdout


def run_script(script: Path, *arguments: str) -> str:
    """The output of a Python script of these tests, in a process of its own."""
    command = [sys.executable, str(script), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=env, timeout=SCRIPT_S
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
    return done.stdout
