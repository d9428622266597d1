"""Seconds of the same step plain and wrapped, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from torch import nn

import memo_train
from memo_train.selftest._modes import MODES, StepSize, check_mode, llama_step, wrapped
from memo_train.selftest._place import Place
from memo_train.selftest._scenario import Figures, Scenario

PLAIN = "plain"
_CPU_SIZE = StepSize(tokens=2048, hidden_size=128, num_blocks=2, num_heads=4)
_GPU_SIZE = StepSize(tokens=8192, hidden_size=1024, num_blocks=4, num_heads=8, dtype="bfloat16")
_WARM_UPS = 2
_REPEATS = 3

Job = tuple[nn.Module, Mapping[str, Any]]


def step_times(place: Place) -> Figures:
    """Medians of interleaved steps by mode, forward and backward, and their ratio to plain.

    Raises: ScenarioFailed if a mode does not do what it is to do; NotSupported.
    """
    size = _GPU_SIZE if place.on_gpu else _CPU_SIZE
    with place.here(), ExitStack() as stack:
        jobs = {PLAIN: llama_step(place, size)}
        for mode in MODES:
            jobs[mode] = llama_step(place, size)
            stack.enter_context(wrapped(jobs[mode][0], mode, size))
        _warm_up(place, jobs)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        # In turn, so that a slow spell of the machine meets every mode.
        for _ in range(_REPEATS):
            for name, job in jobs.items():
                runs[name].append(_timed(place, name, job))
    plain_s = _median(runs[PLAIN], "seconds")
    return {
        "size": asdict(size),
        "repeats": _REPEATS,
        "modes": {name: _summary(each, plain_s) for name, each in runs.items()},
    }


def _warm_up(place: Place, jobs: Mapping[str, Job]) -> None:
    for name, job in jobs.items():
        for _ in range(_WARM_UPS):
            _step(place, job)
            if name != PLAIN:
                memo_train.memory_report(job[0])  # waits for the layout


def _timed(place: Place, name: str, job: Job) -> dict[str, Any]:
    memo_train.reset_stats()
    seconds = _step(place, job)
    stats = memo_train.stats()
    if name != PLAIN:
        check_mode(name)
    return {"seconds": seconds, "stalls": stats.stalls, "stall_s": stats.stall_s}


def _step(place: Place, job: Job) -> float:
    model, batch = job
    model.zero_grad(set_to_none=True)
    place.finish()
    start_s = time.perf_counter()
    model(**batch).loss.backward()
    place.finish()
    return time.perf_counter() - start_s


def _summary(runs: list[dict[str, Any]], plain_s: float) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        "median_s": statistics.median(seconds),
        "least_s": min(seconds),
        "greatest_s": max(seconds),
        "over_plain": statistics.median(seconds) / plain_s,
        "stalls": _median(runs, "stalls"),
        "stall_s": _median(runs, "stall_s"),
    }


def _median(runs: list[dict[str, Any]], name: str) -> Any:
    """None for a figure that the device has not."""
    values = [run[name] for run in runs]
    return None if None in values else statistics.median(values)


STEP_SCENARIO = Scenario("step", step_times)
