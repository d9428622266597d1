"""Does the jobs of one part in one process, a row for each as it ends.

    python -m benchmarks.gpu_check.worker --part a --first 0 --rows rows.jsonl --deadline 1.7e9

The caller starts it again behind a job that ended the process: a CUDA error is for good.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import _rows
from benchmarks.gpu_check._parts import GIB, Job, Part, described, parts
from benchmarks.gpu_check._speeds import SPEEDS
from benchmarks.gpu_check._training import Limits, Repeats, Training, figures_of_steps
from memo_train.errors import PlanInfeasible

_WHOLE = 1024
"""Lengths that are searched for are multiples of it."""
_LEAST_S = 4.0
"""A job is not begun with less time left."""
_STACKS_S = 1.0
"""So long before its time is over all threads' stacks go to the log: a job that is killed shows
where it was. Once only: to look at a process in the middle of an import has ended one."""


def main() -> None:
    """Do the jobs and leave without what libraries do at exit: it must not look like a failure."""
    options = _parse()
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(options.deadline - _STACKS_S - time.time(), _STACKS_S))
    part = next(p for p in parts(tiny=options.tiny) if p.name == options.part)
    if options.allocator == "memo":
        from memo_train.device._cuda_memory import install_cuda_allocator

        install_cuda_allocator()
    if options.tiny:
        torch.set_num_threads(1)
    jobs = Jobs(part, options)
    for index, job in enumerate(part.jobs):
        if index < options.first or (options.modes and job.get("mode") not in options.modes):
            continue
        row = {"part": part.name, "job": index, **described(job)}
        _rows.append(options.begun, {"part": part.name, "job": index})
        row |= jobs.outcome(job)
        _rows.append(options.rows, row)
        if not jobs.alive():
            break
    sys.stdout.flush()
    os._exit(0)


class Jobs:
    """What a part's process holds: a model, made when first asked for."""

    def __init__(self, part: Part, options: argparse.Namespace) -> None:
        self._part, self._deadline_s, self._host_gib = part, options.deadline, options.host_gib
        self._on_gpu = not options.tiny
        self._machine_file = options.rows.with_name("machine.json")
        self._training: Training | None = None
        self._plain: dict[str, torch.Tensor] = {}
        self._policies: dict[str, torch.Tensor] = {}

    def outcome(self, job: Job) -> dict[str, Any]:
        """What the job found; why it found nothing where it failed, and that is no one's end."""
        started_s = time.time()
        if started_s + _LEAST_S > self._deadline_s:
            return {"outcome": "skipped: no time left for it"}
        arguments = {name: value for name, value in job.items() if name != "kind"}
        if job["kind"] == "calibration":
            arguments["out"] = str(self._machine_file)
        try:
            found = {"outcome": "ok", **self._do(job["kind"], arguments)}
        except (torch.OutOfMemoryError, PlanInfeasible) as error:
            found = {"outcome": f"refused: {_first_line(error)}"}
        except ImportError as error:
            found = {"outcome": f"skipped: {_first_line(error)}"}
        except Exception as error:
            traceback.print_exc()
            found = {"outcome": f"failed: {type(error).__name__}: {_first_line(error)}"}
        return {**found, "job_s": round(time.time() - started_s, 2)}

    def alive(self) -> bool:
        """Whether the device still works."""
        try:
            if self._training is not None:
                self._training.clean()
        except Exception:
            return False
        return True

    def _do(self, kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if kind in SPEEDS:
            return SPEEDS[kind](self._on_gpu, **arguments)
        found: dict[str, Any] = getattr(self, f"_{kind}")(**arguments)
        return found

    @property
    def _model(self) -> Training:
        if self._training is None:
            self._training = Training(self._part.geometry, on_gpu=self._on_gpu)
        return self._training

    def _limits(self, cap_gib: float | None = None, tile_tokens: int | None = None) -> Limits:
        return Limits(
            host_bytes=int(self._host_gib * GIB),
            device_bytes=None if cap_gib is None else int(cap_gib * GIB),
            tile_tokens=tile_tokens,
        )

    def _step(
        self,
        mode: str,
        tokens: int,
        repeats: int = 0,
        tile_tokens: int | None = None,
        or_shorter: bool = False,
    ) -> dict[str, Any]:
        """Whole steps of a way. or_shorter: at the longest length that fits, if that is less."""
        try:
            return self._timed(mode, tokens, repeats, tile_tokens)
        except PlanInfeasible as error:
            if not or_shorter or not error.max_tokens:
                raise
            shorter = error.max_tokens // _WHOLE * _WHOLE or error.max_tokens
            return {"tokens": shorter, **self._timed(mode, shorter, repeats, tile_tokens)}

    def _timed(
        self, mode: str, tokens: int, repeats: int, tile_tokens: int | None
    ) -> dict[str, Any]:
        limits = self._limits(tile_tokens=tile_tokens)
        wanted = Repeats(most=repeats, deadline_s=self._deadline_s)
        model, started_s = self._model, time.time()
        with model.trained_by(mode, tokens, limits) as planner:
            enter_s = time.time() - started_s
            figures = figures_of_steps(model, tokens, planner, wanted)
            figures["enter_s"] = enter_s
            geometry = self._part.geometry
            found = {"model": geometry.name, "lora_rank": geometry.lora_rank, "figures": figures}
            if planner is None or planner.last is None:
                return found
            figures["s_per_layer"] = figures["blocks_s"] / geometry.layers
            policy = planner.last.plan.policy
            counts = [
                sum(getattr(block, f"{what}_tiles") for block in policy.blocks)
                for what in ("keep", "swap", "recompute")
            ]
            tiles = f"{'/'.join(map(str, counts))} of {policy.tile_tokens}"
            return {**found, "tiles": tiles}

    def _gradients(self, mode: str, tokens: int) -> dict[str, Any]:
        """Against plain autograd, and bit for bit against the policy before, at one tile size."""
        model, ids = self._model, self._model.ids(tokens)
        if not self._plain:
            with model.trained_by("plain", tokens, self._limits()):
                self._plain = model.gradients(ids)
        with model.trained_by(mode, tokens, self._limits(tile_tokens=max(tokens // 4, 1))):
            ours = model.gradients(ids)
        figures = {"error_to_plain": _distance(ours, self._plain)}
        if self._policies:
            equal = all(torch.equal(ours[name], other) for name, other in self._policies.items())
            figures["bitwise_equal_to_other_policy"] = float(equal)
        self._policies = ours
        finite = all(bool(each.isfinite().all()) for each in ours.values())
        if not finite or figures.get("bitwise_equal_to_other_policy") == 0:
            return {"outcome": "failed: gradients differ between policies", "figures": figures}
        return {"figures": figures}

    def _longest(self, mode: str, cap_gib: float, most: int) -> dict[str, Any]:
        """The longest whole step that runs under a cap, to an eighth of an octave."""
        low, high, guess, tries = 0, most + 1, max(most // 32, 1), 0
        while high - low > max(low // 8, 1) and time.time() + _LEAST_S < self._deadline_s:
            tries += 1
            if self._runs(mode, guess, cap_gib):
                low = guess
            else:
                high = guess
            guess = min(2 * low, most) if high > most else (low + high) // 2
        return {"figures": {"longest_tokens": float(low), "tries": float(tries)}}

    def _runs(self, mode: str, tokens: int, cap_gib: float) -> bool:
        try:
            with self._model.trained_by(mode, tokens, self._limits(cap_gib)):
                self._model.step(self._model.ids(tokens))
        except (torch.OutOfMemoryError, PlanInfeasible):
            return False
        return True


def _distance(ours: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> float:
    """||ours - plain|| / ||plain|| over all parameters."""
    off = sum(float((ours[n].double() - p.double()).square().sum()) for n, p in plain.items())
    size = sum(float(p.double().square().sum()) for p in plain.values())
    return math.sqrt(off / max(size, 1e-300))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:240]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--begun", type=Path, required=True, help="each job's number as it begins")
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--host-gib", type=float, required=True)
    parser.add_argument("--modes", type=json.loads, default=[])
    parser.add_argument("--allocator", choices=["torch", "memo"], default="torch")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
