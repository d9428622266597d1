"""Calls in the background: their results, their errors, behind everything, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memo_planner import PlanInfeasible, background
from memo_planner.background import BackgroundCall
from memo_planner.errors import SolverError, format_bytes

PLANNER = Path(background.__file__).parents[1]


def other_process() -> int:
    """Its number; it runs once a call was made."""
    BackgroundCall(os.getpid).result()
    found = background._process
    assert found is not None
    return found.process.pid


def run(script: str) -> str:
    text = "from memo_planner.background import BackgroundCall\n" + script
    command = [sys.executable, "-W", "error", "-c", text]
    environment = {**os.environ, "PYTHONPATH": str(PLANNER)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_a_call_returns_what_the_function_returns() -> None:
    calls = [BackgroundCall(format_bytes, n) for n in (1, 2**20)]
    assert [call.result() for call in calls] == ["1 B", "1.0 MiB"]
    assert all(call.done() for call in calls)


def test_it_runs_in_one_other_process_behind_everything() -> None:
    pid = other_process()
    assert pid != os.getpid()
    assert BackgroundCall(os.getpid).result() == pid
    policy = BackgroundCall(os.sched_getscheduler, 0)
    while not policy.done():  # nobody hurries it
        time.sleep(0.01)
    assert policy.result() == os.SCHED_IDLE
    assert BackgroundCall(os.nice, 0).result() == 19


def test_errors_are_raised_to_whoever_asks() -> None:
    with pytest.raises(TypeError, match="bad operand"):
        BackgroundCall(format_bytes, "a").result()  # type: ignore[arg-type]
    expected = PlanInfeasible("loss", "device", 5, 4, 3)
    error = BackgroundCall(PlanInfeasible, "loss", "device", 5, 4, 3).result()
    assert (str(error), error.max_tokens) == (str(expected), 3)
    with pytest.raises(SolverError, match="exit code 7"):
        BackgroundCall(os._exit, 7).result()
    assert BackgroundCall(format_bytes, 3).result() == "3 B"


def test_a_process_that_was_ended_is_started_again() -> None:
    os.kill(other_process(), 9)
    assert BackgroundCall(format_bytes, 3).result() == "3 B"


def test_a_forks_child_makes_its_own_calls() -> None:
    script = """
import os, time
before = BackgroundCall(os.getppid)
before.result()
under_way = BackgroundCall(time.sleep, 1.0)
asked = BackgroundCall(os.getppid)
child = os.fork()
print(asked.result() == os.getpid(), BackgroundCall(os.getppid).result() == os.getpid(), flush=True)
if child:
    os.waitpid(child, 0)
    print(under_way.result())
"""
    assert run(script).split() == ["True", "True", "True", "True", "None"]


def test_the_interpreter_ends_without_waiting() -> None:
    began_s = time.monotonic()
    assert run("import time; BackgroundCall(time.sleep, 50); time.sleep(0.5); print('end')")
    assert time.monotonic() - began_s < 30
