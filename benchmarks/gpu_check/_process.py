"""Runs a command in a process group of its own, and ends all of it when its time is over."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMED_OUT = 124


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended. text: what it printed, both streams."""

    code: int
    text: str

    @property
    def why(self) -> str:
        """The last lines, on one; empty if all is well."""
        if self.code == 0:
            return ""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return f"exit code {self.code}: {' | '.join(lines[-3:])[-400:]}"


def run(
    command: Sequence[str], seconds: float, *, log: Path, env: Mapping[str, str] | None = None
) -> Ended:
    """What became of `command`; what it printed is appended to `log` as well.

    After `seconds` the whole group is killed; the exit code is `TIMED_OUT` then.
    """
    process = subprocess.Popen(
        command,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=max(seconds, 1.0))
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        code, text = TIMED_OUT, f"{text}\nended after {seconds:.0f} s"
    with log.open("a") as file:
        file.write(f"\n$ {' '.join(command)[:400]}\n{text}\nexit code {code}\n")
    return Ended(code=code, text=text)
