"""The modes that are compared train the same model, each within its memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.job import MIB, MODES, Job
from benchmarks.process import WorkerProcess

TOKENS = 320
SMALL = Job(mode="plain", layers=4, hidden=64, tile_tokens=64)
# Tiling changes the order of fp32 sums; see the tolerance table for the runtime's own tests.
GRADIENT_ATOL = 1e-6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For each mode: two steps, gradients, then a length that cannot fit, then a step again."""
    folder = tmp_path_factory.mktemp("gradients")
    return {mode: run_mode(replace(SMALL, mode=mode), folder) for mode in MODES}


def run_mode(job: Job, folder: Path) -> dict[str, Any]:
    path = folder / f"{job.mode}.safetensors"
    with WorkerProcess(replace(job, activation_bytes=16 * MIB)) as worker:
        state = worker.ask("describe")["state_bytes"]
        worker.ask("gradients", tokens=TOKENS, path=str(path))
        steps = [worker.ask("step", tokens=TOKENS, index=index) for index in range(2)]
        refused = worker.ask("try", tokens=2**16)
        again = worker.ask("try", tokens=TOKENS)
    gradients = load_file(path)
    return {
        "state": state,
        "gradients": gradients,
        "steps": steps,
        "refused": refused,
        "again": again,
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES[1:])
def test_a_mode_gives_plain_gradients_and_losses(runs: dict[str, Any], mode: str) -> None:
    plain, other = runs["plain"], runs[mode]
    for name, gradient in plain["gradients"].items():
        torch.testing.assert_close(other["gradients"][name], gradient, rtol=0, atol=GRADIENT_ATOL)
    assert other["gradients"].keys() == plain["gradients"].keys()
    losses = [step["loss"] for step in plain["steps"]]
    assert [step["loss"] for step in other["steps"]] == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
def test_checkpoints_are_bitwise_equal_to_each_other(runs: dict[str, Any]) -> None:
    """Level 1: block inputs that went to the host came back unchanged."""
    offloaded = runs["checkpoint_offload"]["gradients"]
    for name, gradient in runs["checkpoint"]["gradients"].items():
        assert torch.equal(offloaded[name], gradient)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_length_beyond_the_cap_is_refused_and_the_next_step_runs(
    runs: dict[str, Any], mode: str
) -> None:
    run = runs[mode]
    assert run["refused"]["refusal"]
    assert "refusal" not in run["again"]
    assert run["again"]["activation_peak_bytes"] <= 16 * MIB
    assert run["again"]["host_peak_bytes"] == run["steps"][1]["host_peak_bytes"]


@pytest.mark.slow
def test_memory_is_counted_where_it_is(runs: dict[str, Any]) -> None:
    """Level 2: three of four block inputs on the host; modes order as they must."""
    inputs_bytes = 3 * TOKENS * SMALL.hidden * 4
    assert runs["checkpoint_offload"]["steps"][1]["host_peak_bytes"] == inputs_bytes
    assert runs["checkpoint_offload"]["steps"][1]["d2h_copies"] == 3
    assert runs["checkpoint"]["steps"][1]["host_peak_bytes"] == 0
    peaks = {mode: run["steps"][1]["activation_peak_bytes"] for mode, run in runs.items()}
    assert peaks["plain"] > peaks["checkpoint"] > peaks["checkpoint_offload"] > 0
    assert len({run["state"] for run in runs.values()}) == 1
