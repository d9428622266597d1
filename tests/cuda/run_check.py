"""Runs one check of a program of C++ checks."""

import os
import subprocess
from pathlib import Path


def run_check(program: Path, name: str, *seeds: int) -> str:
    """The output of check `name`, which must hold. seeds: the first, and how many, if any."""
    command = [str(program), name, *map(str, seeds)]
    # A thread sanitizer gives up after a fork unless told otherwise.
    env = {**os.environ, "TSAN_OPTIONS": "die_after_fork=0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
    assert f"{name} holds" in done.stdout
    return done.stdout
