"""The runtime, unmodified, on the CUDA device over the simulated runtime. Numerics level 3."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import memo_train
from memo_planner.errors import PlanFileError
from memo_train.device import get_cpu_device
from memo_train.selftest._copies import COPY_SCENARIOS, side_by_side
from memo_train.selftest._gradients import by_hooks, by_wrap
from memo_train.selftest._peaks import planned_peak
from memo_train.selftest._place import Place, cpu_place
from memo_train.selftest._scenario import ScenarioFailed
from memo_train.testing import Step, assert_same_bits, run_step
from memo_train.trace import measure_link, measure_link_rates
from tests.cuda.conftest import use_simulation
from tests.cuda.simulated import ArenaMemory, CpuTensorsOnCuda, Simulation
from tests.runtime.policies import force, wrapped_of
from tests.runtime.small_llama import own_llama

torch.set_num_threads(1)

TOKENS = 40
TILE_TOKENS = 16
BACKLOG_BYTES = 1 << 16
NUM_BLOCKS = 2
WAYS = [(policy, free, 1) for policy in ("swap", "mixed") for free in (0, 1 << 40)]
WAYS += [("recompute", free, 2) for free in (0, 1 << 40)]
SEEDS_OF_A_WAY = 250
QUICK_SEEDS = 25


def ways_and_seeds() -> Iterator[Any]:
    """1,500 seeds, all different, a few of each way without waiting for the slow ones."""
    for number, way in enumerate(WAYS):
        seeds = range(number * SEEDS_OF_A_WAY, (number + 1) * SEEDS_OF_A_WAY)
        yield pytest.param(*way, seeds[:QUICK_SEEDS], id=f"{way[0]}-{number}-quick")
        slow = seeds[QUICK_SEEDS:]
        yield pytest.param(*way, slow, id=f"{way[0]}-{number}", marks=pytest.mark.slow)


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
    # Else a model that `wrapped_llama` froze would never be collected.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def wrapped_llama() -> torch.nn.Module:
    model = memo_train.wrap(own_llama(num_blocks=NUM_BLOCKS), alpha=0.5)
    gc.collect()
    gc.freeze()  # what a step leaves is little beside it
    return model


def step_of(model: torch.nn.Module) -> Step:
    """A step, and what the next one would begin with: letting go of the copies under way."""
    ids = torch.randint(1, 61, (2, TOKENS), generator=torch.Generator().manual_seed(3))
    step = run_step(model, input_ids=ids, labels=ids)
    wrapped_of(model)._in_flight.drain()
    gc.collect()
    return step


@pytest.mark.parametrize(("policy", "free_bytes", "num_groups", "seeds"), [*ways_and_seeds()])
def test_gradients_keep_every_bit(
    device: CpuTensorsOnCuda, policy: str, free_bytes: int, num_groups: int, seeds: range
) -> None:
    model = force(wrapped_llama(), "keep", TILE_TOKENS)
    keep = step_of(model)
    device.finish()
    force(model, policy, TILE_TOKENS, free_bytes, num_groups)
    for seed in seeds:
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
    monkeypatch.setattr(event, "wait", lambda self, compute: None)
    caught = 0
    for seed in range(10):
        device.start(seed)
        step = step_of(model)
        _, found = device.finish()
        same = all(torch.equal(step.gradients[n], keep.gradients[n]) for n in keep.gradients)
        caught += bool(found) or not same
    assert caught == 10


def late_copies(place: Place) -> None:
    for scenario in COPY_SCENARIOS:
        if scenario.name.endswith("late copies"):
            assert scenario.run(place)["late_rounds"] > 0, scenario.name


def test_scenarios_of_the_self_test(device: CpuTensorsOnCuda) -> None:
    place = Place(device=device, torch_device=torch.device("cpu"), backlog_bytes=BACKLOG_BYTES)
    device.finish()
    for seed in range(5):
        device.start(seed)
        late_copies(place)
        assert side_by_side([cpu_place(), place])["devices"] == 2
        assert by_hooks(place)["swapped_tensors"] > 20, f"seed {seed}"
        gc.collect()
        num_copies, found = device.finish()
        assert num_copies > 400
        assert not found, f"seed {seed}: {found}"


def test_wrap_in_the_self_test(device: CpuTensorsOnCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients and planned peaks, with the steps' copies late as well."""
    place = Place(device=device, torch_device=torch.device("cpu"), backlog_bytes=BACKLOG_BYTES)
    monkeypatch.setattr(sys.modules["memo_train.stats"], "devices_in_use", lambda: (device,))
    modes = by_wrap(place)["modes"]
    assert modes["swap"]["d2h_bytes"] == modes["swap"]["h2d_bytes"] > 1e6
    assert list(planned_peak(place)["modes"]) == list(modes)
    gc.collect()
    assert not device.finish()[1]


def test_scenarios_of_the_self_test_see_a_missing_wait(
    device: CpuTensorsOnCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(device=device, torch_device=torch.device("cpu"), backlog_bytes=BACKLOG_BYTES)
    device.finish()
    monkeypatch.setattr(device._simulation.module.Event, "wait", lambda self, compute: None)
    for seed in range(5):
        device.start(seed)
        with pytest.raises(ScenarioFailed, match="values are not what was sent"):
            late_copies(place)
        device.finish()


class InSegments(ArenaMemory):
    """Its cap counts, besides the tensors, a segment that is never full."""

    rounding_bytes = 22 << 20

    def set_cap(self, nbytes: int | None) -> None:
        super().set_cap(None if nbytes is None else max(1, nbytes - self.rounding_bytes))


def test_peaks_are_kept_where_caps_count_segments(
    device: CpuTensorsOnCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test's steps are smaller than a segment of torch's allocator."""
    monkeypatch.setattr(sys.modules["memo_train.stats"], "devices_in_use", lambda: (device,))
    device.use(InSegments(), device._simulation.host_stream())
    place = Place(device=device, torch_device=torch.device("cpu"), backlog_bytes=BACKLOG_BYTES)
    peaks = planned_peak(place)["modes"]
    segment_bytes = InSegments.rounding_bytes
    assert segment_bytes < min(each["limit_bytes"] for each in peaks.values()) < 2 * segment_bytes
    gc.collect()
    assert not device.finish()[1]


def test_a_plan_leaves_what_the_cap_counts_beside_tensors(device: CpuTensorsOnCuda) -> None:
    cap_bytes = 64 << 20
    device.use(InSegments(), device._simulation.host_stream())
    model = memo_train.wrap(
        own_llama(num_blocks=NUM_BLOCKS), seq_len=TOKENS, device_gib=cap_bytes / 2**30
    )
    limits = memo_train.plan(model).limits
    assert limits.device_bytes == cap_bytes - InSegments.rounding_bytes
    memo_train.unwrap(model)
    device.finish()


class WithoutLayouts(ArenaMemory):
    why_no_layouts = "somebody else serves this memory"


def test_memory_without_layouts_is_served_by_size(device: CpuTensorsOnCuda) -> None:
    """As torch's own allocator: the same bits, and the report says why."""
    planned = step_of(force(wrapped_llama(), "swap", TILE_TOKENS))
    device.use(WithoutLayouts(), device._simulation.host_stream())
    model = force(wrapped_llama(), "swap", TILE_TOKENS)
    for _ in range(3):
        assert_same_bits(step_of(model), planned)
    report = memo_train.memory_report(model)
    assert report.shapes == ()
    assert "no planned addresses: somebody else serves this memory" in str(report)
    device.finish()


def test_profiles_and_files_name_the_device(
    device: CpuTensorsOnCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that was made on one kind of device is not taken on another."""
    model = memo_train.wrap(own_llama(num_blocks=NUM_BLOCKS), seq_len=TOKENS)
    memo_train.save_plan(model, tmp_path / "plan.json")
    assert memo_train.plan(model).profile.device == "cpu"
    monkeypatch.setattr(device, "torch_device", torch.device("cuda", 0))
    with pytest.raises(PlanFileError, match="device is 'cpu', this model's is 'cuda'"):
        memo_train.load_plan(model, tmp_path / "plan.json")
    device.finish()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_no_step_after_its_plan_pins_host_memory(device: CpuTensorsOnCuda, alpha: float) -> None:
    """Neither the first step of a length nor any of the lengths below it."""
    model = memo_train.wrap(own_llama(num_blocks=NUM_BLOCKS), alpha=alpha, seq_len=4 * TOKENS)
    pins = device._simulation.num_pins()
    for tokens in (4 * TOKENS, TOKENS, 3 * TOKENS, 4 * TOKENS):
        ids = torch.randint(1, 61, (1, tokens))
        run_step(model, input_ids=ids, labels=ids)
    assert device.counters().d2h_copies > 20
    assert device._simulation.num_pins() == pins
    wrapped_of(model)._in_flight.drain()
    del model
    gc.collect()
    assert not device.finish()[1]


def test_counters_tell_busy_and_stalled_seconds(device: CpuTensorsOnCuda) -> None:
    model = force(wrapped_llama(), "swap", TILE_TOKENS, 0)
    device.reset_counters()
    begin = device.now()
    step_of(model)
    device.synchronize()
    passed_s, counters = device.now() - begin, device.counters()
    assert 0 < counters.d2h_busy_s < passed_s
    assert 0 < counters.h2d_busy_s < passed_s
    assert 0 < counters.stall_s < passed_s
    assert counters.stalls > 0
    assert counters.device_peak_bytes >= counters.device_used_bytes > 0
    device.reset_counters()
    assert (device.counters().stall_s, device.counters().d2h_busy_s) == (0, 0)
    device.finish()


def test_link_is_measured(device: CpuTensorsOnCuda) -> None:
    link, rates = measure_link(device), measure_link_rates(device)
    assert min(link.d2h_bytes_per_s, link.h2d_bytes_per_s) > 0
    for value in (rates.d2h_alone_bytes_per_s, rates.h2d_both_bytes_per_s):
        assert 1e6 < value < 1e15
    assert not device.finish()[1]
