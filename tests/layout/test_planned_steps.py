"""Steps at planned addresses: as planned, to the bit what they were, whatever happens between."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import memo_train
from memo_train.device import get_cpu_device
from tests.layout.steps import Training, layouts_of, only_report, wrapped
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import POLICIES

ROOT = Path(__file__).resolve().parents[2]

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def empty_device() -> Iterator[None]:
    yield
    gc.collect()
    assert memo_train.stats().host_used_bytes == 0
    assert get_cpu_device().core.arena.counters().planned_bytes == 0


def losses(family: str, policy: str, *, on: bool, steps: int = 4) -> tuple[list[float], nn.Module]:
    training = Training(wrapped(family, policy, on=on))
    for _ in range(steps):
        training.step()
    return training.losses, training.model


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", MODELS)
def test_every_request_of_every_model_is_as_planned(family: str, policy: str) -> None:
    """Level 1 and 2: bitwise the same losses; peak equal to the bound; nothing unplanned."""
    with_layout, model = losses(family, policy, on=True)
    report = only_report(model)
    assert report.state == "planned"
    assert report.peak_bytes == report.lower_bound_bytes > 0
    assert (report.num_steps, report.num_steps_by_size) == (3, 1)
    assert report.planned == 3 * report.num_requests > 0
    assert (report.unplanned, report.missing, report.first_departure) == (0, 0, "")
    without, _ = losses(family, policy, on=False)
    assert with_layout == without


def test_planned_tensors_are_where_the_layout_says() -> None:
    """The bytes in the planned range never exceed the layout's peak, and reach it."""
    training = Training(wrapped("llama_gqa", "recompute"))
    training.step()
    device = get_cpu_device()
    device.start_recording()
    training.step()
    events = device.stop_recording()
    report = only_report(training.model)
    planned = events[events["bytes"] >= 512]
    ends = {int(e["offset"] + e["bytes"]) for e in planned if e["kind"] == 0}
    starts = {int(e["offset"]) for e in planned if e["kind"] == 0}
    assert any(end - report.peak_bytes in starts for end in ends)


def test_autocast_has_its_own_layout() -> None:
    training = Training(wrapped("llama_gqa"))
    for _ in range(3):
        training.step()
        with torch.autocast("cpu", torch.bfloat16):
            training.accumulate()
        training.update()
    reports = memo_train.memory_report(training.model).shapes
    assert [report.precision for report in reports] == ["its own types", "autocast to bfloat16"]
    assert [report.num_steps for report in reports] == [2, 1]
    assert sum(report.unplanned + report.missing for report in reports) == 0


def test_memory_that_other_threads_take_is_not_planned() -> None:
    """Kernels in bf16 take memory on their own threads, in an order that varies."""
    script = Path(__file__).with_name("two_threads.py")
    quiet = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **quiet}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["threads"] > 1
    assert found["with_layout"] == found["without"]
    assert (found["num_steps"], found["unplanned"], found["missing"]) == (2, 0, 0)


def twice(run: Callable[[Training], None]) -> Training:
    """`run` with layouts and without: the same losses; gives the training with layouts."""
    trainings = []
    for on in (True, False):
        trainings.append(Training(wrapped("llama_gqa", on=on)))
        run(trainings[-1])
    assert trainings[0].losses == trainings[1].losses
    return trainings[0]


def test_lengths_and_batches_that_alternate() -> None:
    def run(training: Training) -> None:
        for _ in range(3):
            for batch, tokens in ((2, 64), (1, 64), (2, 37)):
                training.step(batch, tokens)

    reports = memo_train.memory_report(twice(run).model).shapes
    assert [(r.batch, r.tokens) for r in reports] == [(2, 64), (1, 64), (2, 37)]
    steps = [(r.num_steps, r.unplanned, r.missing) for r in reports]
    assert steps == [(2, 0, 0), (1, 0, 0), (1, 0, 0)]


def test_a_shape_that_comes_once_is_neither_recorded_nor_solved() -> None:
    """But for the first; one that comes again is recorded then, and planned the third time."""
    training = Training(wrapped("llama_gqa"))
    for tokens in (64, 37, 50, 41, 37, 37):
        training.step(1, tokens)
    reports = memo_train.memory_report(training.model).shapes
    states = [(r.tokens, r.state, r.num_steps) for r in reports]
    assert states == [
        (64, "planned", 0),
        (37, "planned", 1),
        (50, "by size", 0),
        (41, "by size", 0),
    ]


def test_evaluation_between_steps() -> None:
    def run(training: Training) -> None:
        for _ in range(4):
            training.step()
            with torch.no_grad():
                training.model(input_ids=training.ids(3, 50))

    report = only_report(twice(run).model)
    assert (report.num_steps, report.unplanned, report.missing) == (3, 0, 0)


def test_gradients_that_accumulate() -> None:
    """Gradients are made in the first backward of an update, and outlive it; in the others they
    are added to those. Each kind has a layout: one of the latter would not hold for the former."""

    def run(training: Training) -> None:
        for _ in range(3):
            for _ in range(3):
                training.accumulate()
            training.update()

    reports = memo_train.memory_report(twice(run).model).shapes
    found = [(r.num_steps, r.unplanned, r.missing) for r in reports]
    assert found == [(2, 0, 0), (5, 0, 0)]


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_an_exception_in_mid_step(phase: str) -> None:
    """In the step that is recorded, and in one that is served."""

    def run(training: Training) -> None:
        broken = training.model.model.layers[1].mlp

        def fail(*_: object) -> None:
            raise ValueError("broken")

        for _ in range(3):
            if phase == "forward":
                hook = broken.register_forward_hook(fail)
            else:
                hook = broken.register_full_backward_hook(fail)
            with pytest.raises(ValueError, match="broken"):
                training.accumulate()
            hook.remove()
            training.model.zero_grad()
            training.step()
            training.step()

    report = only_report(twice(run).model)
    assert report.state == "planned"
    assert (report.num_steps, report.unplanned, report.missing) == (5, 0, 0)


def test_two_models_take_turns_within_a_step() -> None:
    """The second one's forward ends the first one's plan; its tensors stay where they are."""
    results = []
    for on in (True, False):
        trainings = [Training(wrapped(name, on=on)) for name in ("llama_gqa", "gpt2")]
        for _ in range(3):
            totals = []
            for training in trainings:
                ids = training.ids()
                totals.append(training.model(input_ids=ids, labels=ids).loss)
            sum(totals).backward()  # type: ignore[union-attr]
            for training, total in zip(trainings, totals, strict=True):
                training.losses.append(total.item())
                training.update()
        results.append([training.losses for training in trainings])
    assert results[0] == results[1]


def test_two_models_one_after_the_other_are_planned() -> None:
    trainings = [Training(wrapped(name)) for name in ("llama_gqa", "gpt2")]
    for _ in range(3):
        for training in trainings:
            training.step()
    for training in trainings:
        report = only_report(training.model)
        assert (report.num_steps, report.unplanned, report.missing) == (2, 0, 0)


def test_one_more_operation_is_told_once_and_recorded_anew() -> None:
    training = Training(wrapped("llama_gqa"))
    plain = Training(wrapped("llama_gqa", on=False))
    for each in (training, plain):
        each.step()
        each.step()
    extra = []

    def more(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        extra.append(output.detach()[..., :30].exp())

    hook = training.model.model.layers[1].mlp.register_forward_hook(more)
    with pytest.warns(UserWarning, match=r"op exp asked \d.* in post of block 1, tile 0"):
        training.step()
    extra.clear()
    assert only_report(training.model).state == "recording"
    for _ in range(3):
        training.step()
        extra.clear()
    hook.remove()
    report = only_report(training.model)
    assert report.state == "planned"
    assert 0 < report.unplanned < 100
    for _ in range(4):
        plain.step()
    assert training.losses == plain.losses


def test_a_model_that_never_repeats_is_not_recorded_for_ever() -> None:
    """Every step drops other tokens into a buffer of another size."""
    training = Training(wrapped("llama_gqa"))
    sizes = iter(range(1000, 100_000, 1000))

    def drop(*_: object) -> None:
        torch.empty(next(sizes))

    training.model.model.layers[0].mlp.register_forward_hook(drop)
    training.step()
    with pytest.warns(UserWarning, match="recorded anew"):
        training.step()
    for _ in range(7):
        training.step()
    report = only_report(training.model)
    assert report.num_steps_by_size == 4
    assert report.state == "planned"


@pytest.mark.slow
def test_memory_stays_bounded_over_500_steps() -> None:
    training = Training(wrapped("own"))
    device, used = get_cpu_device(), set()
    for step in range(500):
        training.step(1 + step % 2, 16 if step % 3 else 24)
        if step % 50 == 0:
            with torch.no_grad():
                training.model(input_ids=training.ids(1, 20))
        if step >= 20:
            used.add(device.counters().device_used_bytes)
            assert device.counters().device_live_allocations < 2000
    assert max(used) - min(used) < 4096
    reports = memo_train.memory_report(training.model).shapes
    # Of four shapes three are recorded when they come again; then each waits for its layout.
    assert 500 - 4 - 3 - 4 <= sum(r.num_steps for r in reports) <= 500 - 4 - 3
    assert sum(r.unplanned + r.missing for r in reports) == 0


def test_layouts_can_be_put_off_and_on() -> None:
    training = Training(wrapped("own"))
    training.step()
    memo_train.use_layouts(training.model, False)
    training.step()
    memo_train.use_layouts(training.model, True)
    training.step()
    report = only_report(training.model)
    assert (report.num_steps, report.num_steps_by_size) == (1, 1)
    assert "unplanned" in str(memo_train.memory_report(training.model))
    assert layouts_of(training.model).on
    assert report in memo_train.memory_report().shapes
