"""A run that is killed and resumed has the losses of the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import memo_train
from memo_train.planning import StepPlanner
from memo_train.trainer._checkpoint import last_complete, load_plans, save_plans
from memo_train.wrap import planner_of
from tests.trainer.tiny import tiny_llama
from tests.trainer.train_resumed import SAVED_EVERY

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("train_resumed.py")
NUM_STEPS = 14


def start(out: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Each run measures the model anew, as on a machine whose cache of profiles was lost."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MEMO_TRAIN_CACHE": str(cache)}
    command = [sys.executable, str(SCRIPT), str(out), str(NUM_STEPS)]
    with (out.parent / f"{out.name}.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | more, stdout=log, stderr=log)


def finish(out: Path, cache: Path) -> None:
    process = start(out, cache)
    assert process.wait(timeout=600) == 0, (out.parent / f"{out.name}.txt").read_text()[-3000:]


def lines(out: Path) -> list[str]:
    path = out / "losses.txt"
    return path.read_text().splitlines() if path.is_file() else []


def kill_at(out: Path, cache: Path, step: int, kind: signal.Signals, after_s: float) -> None:
    """Start, and kill some time after a step is done: in a step, or while a checkpoint is saved."""
    process = start(out, cache)
    deadline_s = time.monotonic() + 600
    while len(lines(out)) < step and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.002)
    time.sleep(after_s)
    process.send_signal(kind)
    process.wait(timeout=60)


def run_killed(out: Path, expected: list[str], seed: int) -> None:
    """Kill at a random point, resume, and compare every line: those done twice as well."""
    draw = random.Random(seed)
    step = draw.randrange(SAVED_EVERY, NUM_STEPS)
    kind = draw.choice([signal.SIGTERM, signal.SIGKILL])
    after_s = draw.random() * 0.1
    kill_at(out, out.parent / f"{out.name}-first", step, kind, after_s)
    finish(out, out.parent / f"{out.name}-second")
    found = lines(out)
    assert set(found) == set(expected), f"seed {seed}: {kind!r} after step {step}"
    assert found[-1] == expected[-1]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(out, out.parent / "cache")
    assert len(lines(out)) == NUM_STEPS
    return lines(out)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_goes_on_bit_for_bit(seed: int, expected: list[str], tmp_path: Path) -> None:
    run_killed(tmp_path / "run", expected, seed)


@pytest.mark.skipif("MEMO_TRAIN_KILLS" not in os.environ, reason="takes minutes; set it to 20")
def test_a_run_killed_at_many_points_goes_on_bit_for_bit(
    expected: list[str], tmp_path: Path
) -> None:
    for seed in range(100, 100 + int(os.environ["MEMO_TRAIN_KILLS"])):
        run_killed(tmp_path / f"run-{seed}", expected, seed)
        shutil.rmtree(tmp_path / f"run-{seed}")


def test_a_resumed_run_plans_from_what_the_first_one_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Seconds differ from one measurement to the next, and the size of tiles hangs on them."""

    def planner() -> StepPlanner:
        return planner_of(memo_train.wrap(tiny_llama(max_position_embeddings=1024), seq_len=8))

    first, ids = planner(), torch.arange(700)[None] % 60
    measured = first.measured()
    assert measured is not None
    for _, profile in measured["profiles"]:
        for line in profile["peaks"]:
            line["bytes_per_tile_token"] *= 30  # as if only small tiles fitted
    assert first.adopt_measured(measured)
    limits = replace(first._choices.limits, device_bytes=9 * 2**20)
    first._choices = replace(first._choices, limits=limits)
    first.wrapped.run_model(input_ids=ids, labels=ids).loss.backward()
    assert first.last is not None
    save_plans(first, tmp_path)
    again = planner()
    again._choices = replace(again._choices, limits=limits)
    unlike = again.plan(1, 700, exactly=False).plan.policy.tile_tokens
    load_plans(again, tmp_path)
    for tokens in (700, 650, 333):
        ours, theirs = (p.plan(1, tokens, exactly=False).plan.policy for p in (again, first))
        assert ours.tile_tokens == theirs.tile_tokens
    assert unlike > first.plan(1, 700).plan.policy.tile_tokens
    assert not caplog.text
    other = planner_of(memo_train.wrap(tiny_llama(num_attention_heads=2)))
    load_plans(other, tmp_path)
    assert "was measured on another machine or model" in caplog.text


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path: Path) -> None:
    assert last_complete(tmp_path, 1) is None
    for step, state in ((3, "{}"), (12, '{"global_step": 1'), (9, "{}")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-15").mkdir()
    assert last_complete(tmp_path, 1) == tmp_path / "checkpoint-9"
    assert last_complete(tmp_path, 2) is None
    (tmp_path / "checkpoint-3" / "rng_state_0.pth").touch()
    (tmp_path / "checkpoint-3" / "rng_state_1.pth").touch()
    assert last_complete(tmp_path, 2) == tmp_path / "checkpoint-3"
