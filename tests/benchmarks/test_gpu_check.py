"""The check of a GPU, run on the CPU: all parts, and what becomes of one that dies or hangs."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_check import _build, _rows
from benchmarks.gpu_check.__main__ import Check
from benchmarks.gpu_check._parts import DEFAULT_PARTS, Part, parts
from benchmarks.gpu_check._process import TIMED_OUT, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_whole_check_runs_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--tiny", "--out", str(tmp_path)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = _rows.read(tmp_path / "rows.jsonl")
    assert {row["part"] for row in rows} == {part.name for part in parts(tiny=True)}
    assert not [row for row in rows if row["outcome"].startswith(("failed", "refused"))]
    steps = {
        (r["part"], r["mode"]): r["figures"]
        for r in rows
        if r["what"] == "step" and r.get("figures")
    }
    memo, peer = steps["a", "memo_swap"], steps["a", "hf_checkpoint"]
    assert memo["loss"] == pytest.approx(peer["loss"], rel=1e-5)
    assert memo["d2h_bytes"] > 0
    assert memo["host_peak_bytes"] > 0
    assert memo["predicted_s"] > 0
    assert memo["blocks_s"] < max(memo["seconds"])
    gradients = [r["figures"] for r in rows if r["what"] == "gradients"]
    assert all(g.get("bitwise_equal_to_other_policy", 1.0) == 1.0 for g in gradients)
    assert all(g["error_to_plain"] < 1e-5 for g in gradients)
    longest = {r["mode"]: r["figures"]["longest_tokens"] for r in rows if r["what"] == "longest"}
    assert 0 < longest["plain"] < longest["hf_checkpoint"]
    with (tmp_path / "results.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {"mfu", "tokens_per_s", "stall_share"} <= {row["figure"] for row in written}
    assert all(row["commit"] and "cores" in row["machine"] for row in written)


def check_with(tmp_path: Path, script: str) -> Check:
    """A check whose workers run `script`, to which it gives its part's first job and both files."""
    options = argparse.Namespace(
        out=tmp_path,
        budget_s=60.0,
        parts="a",
        modes="",
        host_gib=None,
        allocator="torch",
        tiny=True,
    )

    class Scripted(Check):
        def _worker(self, part: Part, first: int, deadline_s: float) -> list[str]:
            given = [part.name, str(first), str(self._rows), str(self._begun)]
            return [sys.executable, "-c", script, *given]

    return Scripted(options)


ONE_JOB = """
import json, os, sys, time
part, first, rows, begun = sys.argv[1:]
row = {"part": part, "job": int(first)}
open(begun, "a").write(json.dumps(row) + "\\n")
"""


def test_a_job_that_ends_its_process_is_a_row_and_the_next_one_follows(tmp_path: Path) -> None:
    dies_once = ONE_JOB + (
        "if first == '1': os.abort()\n"
        "row |= {'what': 'step', 'outcome': 'skipped: a test'}\n"
        "open(rows, 'a').write(json.dumps(row) + '\\n')\n"
    )
    check = check_with(tmp_path, dies_once)
    part = next(p for p in parts(tiny=True) if p.name == "a")
    check._jobs(part, time.time() + 50)
    rows = {row["job"]: row for row in _rows.read(tmp_path / "rows.jsonl")}
    assert sorted(rows) == list(range(len(part.jobs)))
    assert rows[1]["outcome"].startswith("failed: exit code -6")
    assert rows[1]["mode"] == part.jobs[1]["mode"]
    assert all(r["outcome"] == "skipped: a test" for n, r in rows.items() if n != 1)


def test_a_part_beyond_its_time_ends_with_rows_that_say_so(tmp_path: Path) -> None:
    check = check_with(tmp_path, ONE_JOB + "time.sleep(60)\n")
    part = next(p for p in parts(tiny=True) if p.name == "a")
    started_s = time.time()
    check._jobs(part, started_s + 5)
    assert time.time() - started_s < 30
    rows = _rows.read(tmp_path / "rows.jsonl")
    assert rows[0]["outcome"] == "failed: its time was over"
    assert {row["outcome"] for row in rows[1:]} == {"skipped: no time left for it"}
    assert len(rows) == len(part.jobs)


def test_a_worker_that_cannot_begin_is_told_once(tmp_path: Path) -> None:
    check = check_with(tmp_path, "raise SystemExit('no module named torch')")
    part = next(p for p in parts(tiny=True) if p.name == "a")
    check._jobs(part, time.time() + 50)
    first, *others = _rows.read(tmp_path / "rows.jsonl")
    assert "no job was begun" in first["outcome"]
    assert "no module named torch" in first["outcome"]
    assert len(others) == len(part.jobs) - 1


def test_a_command_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    ended = run(["sh", "-c", "sleep 60 & wait"], 1, log=tmp_path / "log.txt")
    assert ended.code == TIMED_OUT
    assert "ended after 1 s" in (tmp_path / "log.txt").read_text()


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    _rows.append(path, {"part": "a", "what": "step", "outcome": "ok"})
    path.write_text(path.read_text() + json.dumps({"part": "b", "what": "step"})[:9])
    assert [row["part"] for row in _rows.read(path)] == ["a"]


def test_carried_extensions_are_told_apart_by_their_sources(tmp_path: Path) -> None:
    _build.bundle(tmp_path)
    assert (tmp_path / "sources.sha256").read_text().strip() == _build.sources_digest()
    assert len(list(tmp_path.glob("*.so"))) == len(_build.EXTENSIONS)


def test_the_first_call_is_under_eight_minutes_and_knows_its_parts() -> None:
    every = {part.name: part for part in parts(tiny=False)}
    assert set(DEFAULT_PARTS) <= set(every)
    assert every["a"].jobs[0]["mode"] == "hf_checkpoint"
    assert every["a"].jobs[0]["tokens"] == 131_072
    assert every["c"].jobs[0]["tokens"] >= 350_000
