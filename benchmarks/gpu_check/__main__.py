"""Builds memo-train on a machine with a GPU, proves it there and measures it, in one call.

    python -m benchmarks.gpu_check --out DIR                   # under 8 minutes, parts a and b
    python -m benchmarks.gpu_check --out DIR --parts build,c   # the longest step, a call of its own
    python -m benchmarks.gpu_check --out DIR --tiny            # the same logic on the CPU

Every part has a budget and a process of its own. Written to DIR as they come: rows.jsonl; after
every part results.csv, to be added to benchmarks/results/; log.txt, what the parts printed;
selftest*.json and kernels.json. The table comes last. docs/gpu_check.md says what the parts are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_check import _rows
from benchmarks.gpu_check._build import ROOT, build, install_wheels
from benchmarks.gpu_check._parts import (
    DEFAULT_PARTS,
    GIB,
    Part,
    available_bytes,
    described,
    parts,
)
from benchmarks.gpu_check._process import TIMED_OUT, run
from benchmarks.results import machine_name

_LEAST_S = 3.0
_SPARE_S = 5.0
"""At the end, for the table."""
_KERNEL_TOKENS = 32768
"""Of fewer a GPU takes as long as it takes to ask for an operation."""
_HOST_SHARE = 0.85
"""Of the memory that is available: what is pinned no other program gets."""


class Check:
    """The parts that were asked for, and the rows of what they found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._end_s = time.time() + options.budget_s - _SPARE_S
        self._out: Path = options.out.resolve()
        self._out.mkdir(parents=True, exist_ok=True)
        self._rows = self._out / "rows.jsonl"
        self._begun = self._out / "begun.jsonl"
        self._log = self._out / "log.txt"
        self._site = self._out / "site"
        self._machine = machine_name()
        paths = [str(self._site), str(ROOT), str(ROOT / "planner"), os.environ.get("PYTHONPATH")]
        self._env = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }
        self._allocator: dict[str, str] = {}

    def run(self) -> bool:
        """All parts; whether none failed."""
        os.environ |= self._env
        for path in (self._rows, self._begun):
            path.unlink(missing_ok=True)
        wheels = install_wheels(self._site, self._log)
        if wheels.code:
            self._add({"part": "build", "what": "wheels", "outcome": f"failed: {wheels.why}"})
        wanted = self._options.parts.split(",")
        for part in parts(tiny=self._options.tiny):
            if part.name in wanted:
                self._part(part)
        rows = _rows.read(self._rows)
        print("\n".join(["", self._machine, *_rows.table(rows)]), flush=True)
        return not any(row["outcome"].startswith("failed") for row in rows)

    def _part(self, part: Part) -> None:
        """One part; whatever becomes of it is a row, and the next one follows."""
        started_s = time.time()
        deadline_s = min(started_s + part.budget_s, self._end_s)
        self._say(f"== {part.name}: up to {max(deadline_s - started_s, 0):.0f} s")
        own: dict[str, Callable[[float], None]] = {
            "build": self._build,
            "selftest": self._selftests,
            "kernels": self._kernels,
        }
        if deadline_s - started_s < _LEAST_S:
            self._add({"part": part.name, "what": part.name, "outcome": "skipped: no time left"})
        elif part.name in own:
            own[part.name](deadline_s)
        else:
            self._jobs(part, deadline_s)
        rows = _rows.read(self._rows)
        self._machine = next((r["gpu"] for r in rows if r.get("gpu")), self._machine)
        _rows.write_csv(self._out / "results.csv", rows, self._machine)
        for row in rows:
            if row["part"] == part.name and row["outcome"] != "ok":
                self._say(f"   {row.get('mode', row['what'])}: {row['outcome']}"[:200])

    def _jobs(self, part: Part, deadline_s: float) -> None:
        """The part's worker, again behind a job that ended its process."""
        first = 0
        while first < len(part.jobs) and time.time() + _LEAST_S < deadline_s:
            command, left_s = self._worker(part, first, deadline_s), deadline_s - time.time()
            ended = run(command, left_s, log=self._log, env=self._allocator)
            done = {row["job"] for row in self._of(part, self._rows)}
            begun = [row["job"] for row in self._of(part, self._begun)]
            lost = [index for index in begun if index not in done]
            late = ended.code == TIMED_OUT
            why = "its time was over" if late else ended.why
            for index in lost:
                self._add(self._lost_row(part, index, f"failed: {why}"))
            if not begun or begun[-1] < first:
                if ended.code:
                    self._add(self._lost_row(part, first, f"failed: no job was begun: {why}"))
                break
            first = begun[-1] + 1
        done = {row["job"] for row in self._of(part, self._rows)}
        for index in range(len(part.jobs)):
            if index not in done and self._is_wanted(part.jobs[index]):
                self._add(self._lost_row(part, index, "skipped: no time left for it"))

    def _worker(self, part: Part, first: int, deadline_s: float) -> list[str]:
        options = self._options
        command = [sys.executable, "-m", "benchmarks.gpu_check.worker"]
        command += ["--part", part.name, "--first", str(first), "--rows", str(self._rows)]
        command += ["--begun", str(self._begun), "--deadline", str(deadline_s - 2)]
        command += ["--host-gib", str(self._host_gib()), "--allocator", options.allocator]
        command += ["--modes", json.dumps(options.modes.split(",") if options.modes else [])]
        return [*command, "--tiny"] if options.tiny else command

    def _host_gib(self) -> float:
        if self._options.host_gib is not None:
            return float(self._options.host_gib)
        return 1.0 if self._options.tiny else _HOST_SHARE * available_bytes() / GIB

    def _of(self, part: Part, path: Path) -> list[dict[str, Any]]:
        return [row for row in _rows.read(path) if row["part"] == part.name and "job" in row]

    def _is_wanted(self, job: dict[str, Any]) -> bool:
        modes = self._options.modes
        return not modes or job.get("mode") in modes.split(",")

    def _lost_row(self, part: Part, index: int, outcome: str) -> dict[str, Any]:
        job = part.jobs[index]
        return {"part": part.name, "job": index, **described(job), "outcome": outcome}

    def _build(self, deadline_s: float) -> None:
        started_s = time.time()
        outcome = build(deadline_s - started_s, self._log, with_cuda=not self._options.tiny)
        text = outcome.removeprefix("ok: ")
        row = {"part": "build", "what": "extensions", "text": text}
        row["outcome"] = "ok" if outcome.startswith("ok") else outcome
        self._add({**row, "figures": {"build_s": round(time.time() - started_s, 1)}})
        if self._options.tiny or self._options.allocator == "memo":
            return
        probed = run([sys.executable, "-c", _PROBE], 60, log=self._log, env=_EXPANDABLE)
        self._allocator = {} if probed.code else _EXPANDABLE
        row = {"part": "build", "what": "expandable segments", "outcome": "ok"}
        self._add({**row, "text": "used" if self._allocator else f"not used: {probed.why}"})

    def _selftests(self, deadline_s: float) -> None:
        """With the GPU's tensors from torch's allocator, then from memo-train's."""
        if self._options.tiny:
            outcome = "skipped: tests/selftest runs it on the CPU"
            self._add({"part": "selftest", "what": "selftest", "outcome": outcome})
            return
        for allocator in ("torch", "memo"):
            path = self._out / f"selftest-{allocator}.json"
            path.unlink(missing_ok=True)
            command = [sys.executable, "-m", "memo_train.selftest", "--quick", "--json", str(path)]
            command += ["--allocator", allocator, "--gpus-only"]
            ended = run(command, deadline_s - time.time(), log=self._log)
            row = {"part": "selftest", "what": "selftest", "mode": allocator}
            self._add(row | _selftest_outcome(path, ended.why))

    def _kernels(self, deadline_s: float) -> None:
        """The fused kernels against torch's ways, as `memo_train.kernels.benchmark` times them."""
        path = self._out / "kernels.json"
        command = [sys.executable, "-m", "memo_train.kernels.benchmark", "--json", str(path)]
        if not self._options.tiny:
            command += [f"--tokens={_KERNEL_TOKENS}"]
        else:
            command += ["--device=cpu", "--repeats=2", "--tokens=4", "--hidden=64", "--ffn=96"]
            command += ["--heads=2", "--head-dim=32"]
        ended = run(command, deadline_s - time.time(), log=self._log)
        row = {"part": "kernels", "what": "kernels"}
        if ended.code or not path.is_file():
            self._add({**row, "outcome": f"failed: {ended.why or 'nothing was written'}"})
            return
        for timing in json.loads(path.read_text())["timings"]:
            numbers = {k: v for k, v in timing.items() if isinstance(v, float)}
            texts = {k: v for k, v in timing.items() if isinstance(v, str)}
            told = {"text": " ".join(texts.values()), "figures": numbers}
            self._add({**row, **texts, **told, "outcome": "ok"})

    def _add(self, row: dict[str, Any]) -> None:
        _rows.append(self._rows, row)

    def _say(self, text: str) -> None:
        left_s = self._end_s + _SPARE_S - time.time()
        print(f"[{self._options.budget_s - left_s:6.1f} s] {text}", flush=True)


_EXPANDABLE = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""For long steps of every way torch's allocator must not fragment."""

_PROBE = """
import torch
from memo_train.device import get_cuda_device
device, x = get_cuda_device(), torch.ones(1 << 28, device="cuda")
address = x.data_ptr()
assert device.owns(address) and device.owns(address + x.nbytes - 1)
host = device.host_alloc(x.nbytes)
device.copy_to_host(host, address, x.nbytes).wait()
torch.cuda.synchronize()
"""
"""Whether memo-train's device takes such memory for the GPU's, and copies it."""


def _selftest_outcome(path: Path, why: str) -> dict[str, Any]:
    if not path.is_file():
        return {"outcome": f"failed: {why or 'nothing was written'}"}
    result = json.loads(path.read_text())
    failed = [
        f"{device} {name}: {found['outcome']}"[:160]
        for rank in result["ranks"]
        for device, scenarios in rank["devices"].items()
        for name, found in scenarios.items()
        if found["outcome"].startswith("failed")
    ]
    counts = {name: float(value) for name, value in result["counts"].items()}
    outcome = f"failed: {'; '.join(failed)}"[:600] if failed else "ok"
    return {"outcome": outcome, "figures": counts}


def main() -> int:
    """0 where nothing failed; what was refused or skipped is a result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for all that is written")
    parser.add_argument("--parts", default=None, help="such as a,b; default: all but c and d")
    parser.add_argument("--modes", default="", help="of steps, such as hf_checkpoint,memo")
    parser.add_argument("--budget-s", type=float, default=470, help="seconds for everything")
    parser.add_argument("--host-gib", type=float, help="pinned memory; default: most of it")
    parser.add_argument("--allocator", choices=["torch", "memo"], default="torch")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU, all parts")
    options = parser.parse_args()
    every = [part.name for part in parts(tiny=options.tiny)]
    options.parts = options.parts or ",".join(every if options.tiny else DEFAULT_PARTS)
    unknown = sorted(set(options.parts.split(",")) - set(every))
    if unknown:
        parser.error(f"--parts {','.join(unknown)}: there are {', '.join(every)}")
    return 0 if Check(options).run() else 1


if __name__ == "__main__":
    sys.exit(main())
