"""The runtime, unmodified, on the CUDA device over the simulated runtime. Numerics level 3."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
import torch

import memo_train
from memo_train.device import get_cpu_device
from memo_train.selftest.copies import bytes_come_back
from memo_train.selftest.gradients import swapped_by_hooks
from memo_train.selftest.place import Place
from memo_train.testing import Step, assert_same_bits, run_step
from tests.cuda.conftest import use_simulation
from tests.cuda.simulated import CpuTensorsOnCuda, Simulation
from tests.runtime.causal_lms import own_llama
from tests.runtime.policies import force, wrapped_of

torch.set_num_threads(1)

TOKENS = 40
TILE_TOKENS = 16
NUM_SEEDS = 25


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection() -> None:
    """Collections after each step need not look at what the libraries have made."""
    own_llama()
    gc.collect()
    gc.freeze()


@pytest.fixture
def device(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> Iterator[CpuTensorsOnCuda]:
    """What `wrap` takes for the device of its model, with freed memory poisoned."""
    use_simulation(monkeypatch, simulation)
    made = CpuTensorsOnCuda(simulation)
    made.start(0)
    monkeypatch.setattr(sys.modules["memo_train.wrap"], "device_of", lambda parameters: made)
    get_cpu_device().poison(True)
    yield made
    get_cpu_device().poison(False)


def wrapped_llama() -> torch.nn.Module:
    return memo_train.wrap(own_llama(), alpha=0.5)


def step_of(model: torch.nn.Module) -> Step:
    """A step, and what the next one would begin with: letting go of the copies under way."""
    ids = torch.randint(1, 61, (2, TOKENS), generator=torch.Generator().manual_seed(3))
    step = run_step(model, input_ids=ids, labels=ids)
    wrapped_of(model)._in_flight.drain()
    gc.collect()
    return step


@pytest.mark.parametrize("policy", ["swap", "mixed"])
@pytest.mark.parametrize("free_bytes", [0, 1 << 40])
def test_gradients_keep_every_bit(device: CpuTensorsOnCuda, policy: str, free_bytes: int) -> None:
    model = force(wrapped_llama(), "keep", TILE_TOKENS)
    keep = step_of(model)
    device.finish()
    force(model, policy, TILE_TOKENS, free_bytes)
    for seed in range(NUM_SEEDS):
        device.start(seed)
        step = step_of(model)
        num_copies, found = device.finish()
        assert num_copies > 20, f"seed {seed}"
        assert not found, f"seed {seed}: {found}"
        assert_same_bits(step, keep)


def test_a_missing_wait_shows(device: CpuTensorsOnCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    model = force(wrapped_llama(), "keep", TILE_TOKENS)
    keep = step_of(model)
    device.finish()
    force(model, "swap", TILE_TOKENS)
    event = device._simulation.module.Event
    monkeypatch.setattr(event, "wait", lambda self: None)
    caught = 0
    for seed in range(10):
        device.start(seed)
        step = step_of(model)
        _, found = device.finish()
        same = all(torch.equal(step.gradients[n], keep.gradients[n]) for n in keep.gradients)
        caught += bool(found) or not same
    assert caught == 10


def test_scenarios_of_the_self_test(device: CpuTensorsOnCuda) -> None:
    place = Place(device=device, torch_device=torch.device("cpu"))
    device.finish()
    for seed in range(5):
        device.start(seed)
        assert bytes_come_back(place), f"seed {seed}"
        assert swapped_by_hooks(place)["bitwise_equal"], f"seed {seed}"
        gc.collect()
        num_copies, found = device.finish()
        assert num_copies > 100
        assert not found, f"seed {seed}: {found}"
