"""A run that is killed and resumed has the losses of the uninterrupted one, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import memo_train
from memo_train.planning import StepPlanner
from memo_train.profiling import AHEAD_VARIABLE
from memo_train.trainer._checkpoint import last_complete, load_plans, save_plans
from memo_train.wrap import planner_of
from tests.trainer import train_resumed
from tests.trainer.tiny import tiny_llama
from tests.trainer.train_resumed import SAVED_EVERY

NUM_STEPS = 14
# Forked from one that has imported everything: a run takes a second then.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.trainer.train_resumed", "memo_train.trainer._trainer"])


def start(out: Path, cache: Path) -> Any:
    process = PROCESSES.Process(target=train_resumed.main, args=(out, NUM_STEPS, cache))
    process.start()
    return process


def finish(out: Path, cache: Path) -> None:
    process = start(out, cache)
    process.join(timeout=600)
    assert process.exitcode == 0, (out.parent / f"{out.name}.txt").read_text()[-3000:]


def lines(out: Path) -> list[str]:
    path = out / "losses.txt"
    return path.read_text().splitlines() if path.is_file() else []


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When a run is killed: in a step, or while a checkpoint is saved."""

    step: int
    kind: signal.Signals
    after_s: float

    @classmethod
    def drawn(cls, seed: int) -> Kill:
        draw = random.Random(seed)
        step = draw.randrange(SAVED_EVERY, NUM_STEPS)
        kind = draw.choice([signal.SIGTERM, signal.SIGKILL])
        return cls(step=step, kind=kind, after_s=draw.random() * 0.1)

    def strike(self, out: Path, cache: Path) -> None:
        """Start, and kill some time after a step is done."""
        process = start(out, cache)
        deadline_s = time.monotonic() + 600
        while len(lines(out)) < self.step and process.is_alive() and time.monotonic() < deadline_s:
            time.sleep(0.002)
        time.sleep(self.after_s)
        if process.is_alive():
            os.kill(process.pid, self.kind)
        process.join(timeout=60)
        assert process.exitcode in (-self.kind, 0), f"{self}: ended with {process.exitcode}"


def run_killed(out: Path, expected: list[str], seed: int, caches: tuple[Path, Path]) -> str:
    """Kill at a random point, resume, and compare every line: those done twice as well.

    caches: of the run that is killed, and of the one that resumes it. A line of a table.
    """
    kill = Kill.drawn(seed)
    kill.strike(out, caches[0])
    before = len(lines(out))
    finish(out, caches[1])
    # Killed behind its last checkpoint, a run takes a step more: so does one of Transformers' own.
    found = [line for line in lines(out) if int(line.split()[0]) <= NUM_STEPS]
    assert set(found) == set(expected), f"seed {seed}: {kill}"
    assert found[-1] == expected[-1]
    resumed_at = int(found[before].split()[0]) - 1 if before < len(found) else NUM_STEPS
    waited = f"{1000 * kill.after_s:3.0f} ms"
    return (
        f"{seed:4}  {kill.kind.name}  step {before:2} + {waited}  resumed at {resumed_at:2}"
        f"  {len(found) - NUM_STEPS} steps again, {NUM_STEPS} of {NUM_STEPS} losses the same bits"
    )


@pytest.fixture(scope="module", autouse=True)
def all_measured_ahead() -> Iterator[None]:
    """As in training: what is first measured after a checkpoint would be measured anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(AHEAD_VARIABLE)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(out, cache)
    assert len(lines(out)) == NUM_STEPS
    return lines(out)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(expected: list[str], cache: Path, tmp_path: Path) -> None:
    """As on a machine whose cache of profiles was lost: who resumes measures the model anew."""
    run_killed(tmp_path / "run", expected, 0, (cache, tmp_path / "another"))


@pytest.mark.slow
def test_a_run_killed_at_many_points_goes_on_bit_for_bit(
    expected: list[str], cache: Path, tmp_path: Path
) -> None:
    """MEMO_TRAIN_KILLS is how many: 20 take a minute. `pytest -s` shows the table."""
    for seed in range(100, 100 + int(os.environ.get("MEMO_TRAIN_KILLS", "2"))):
        print(run_killed(tmp_path / f"run-{seed}", expected, seed, (cache, cache)), flush=True)
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
