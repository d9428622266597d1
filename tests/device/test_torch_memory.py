"""Counters and cap of torch's own CUDA allocator; torch's functions are stood in for."""

from __future__ import annotations

import pytest
import torch

from memo_train.device import StepAddresses
from memo_train.device._cuda_memory import TorchMemory
from memo_train.device.errors import NoPlannedAddresses, UncountedMemory

TOTAL_BYTES = 24 * 2**30
ORDINAL = 2


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The memory fractions that torch was given, by GPU."""
    given = {ORDINAL: 1.0}

    def give(fraction: float, device: int) -> None:
        assert isinstance(fraction, float)
        assert 0 <= fraction <= 1
        given[device] = fraction

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", give)
    monkeypatch.setattr(torch.cuda.memory, "get_per_process_memory_fraction", given.__getitem__)
    stats = {
        "allocated_bytes": {"all": {"current": 10, "peak": 30}},
        "reserved_bytes": {"all": {"peak": 50}},
        "allocation": {"all": {"current": 1, "allocated": 7}},
    }
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: stats)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    return given


@pytest.mark.parametrize("cap", [1, 999_999_999, TOTAL_BYTES // 3, TOTAL_BYTES - 1])
def test_a_cap_is_a_part_of_the_gpus_memory(fractions: dict[int, float], cap: int) -> None:
    memory = TorchMemory(ORDINAL, TOTAL_BYTES)
    assert memory.read().cap_bytes is None
    memory.set_cap(cap)
    assert fractions == {ORDINAL: cap / TOTAL_BYTES}
    assert memory.read().cap_bytes == cap, "as it must be put back later"
    for none in (None, TOTAL_BYTES, 2 * TOTAL_BYTES):
        memory.set_cap(none)
        assert memory.read().cap_bytes is None


def test_figures_are_torchs(fractions: dict[int, float]) -> None:
    found = TorchMemory(ORDINAL, TOTAL_BYTES).read()
    assert (found.used_bytes, found.peak_bytes, found.reserved_peak_bytes) == (10, 30, 50)
    assert (found.live_allocations, found.allocations) == (1, 7)


def test_there_are_no_planned_addresses() -> None:
    memory = TorchMemory(ORDINAL, TOTAL_BYTES)
    with pytest.raises(NoPlannedAddresses, match=r"install_cuda_allocator\(\) before the first"):
        memory.start_recording()
    columns = {"size_bytes": [], "offset_bytes": [], "mark_values": [], "mark_firsts": []}
    with pytest.raises(NoPlannedAddresses, match="torch's own allocator"):
        memory.make_layout(StepAddresses(**columns), 1024)
    assert len(memory.stop_recording()) == 0
    assert memory.end_step() is None


@pytest.mark.parametrize("method", ["read", "reset_peak", "set_cap"])
def test_an_allocator_that_torch_does_not_count_is_refused(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """torch's own functions would raise a RuntimeError in the middle of whatever asks."""
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "pluggable")
    memory = TorchMemory(ORDINAL, TOTAL_BYTES)
    arguments = (1,) if method == "set_cap" else ()
    with pytest.raises(UncountedMemory, match=r"device 2 .*install_cuda_allocator\(\) instead"):
        getattr(memory, method)(*arguments)


def test_a_cap_leaves_room_for_a_segment_of_each_pool() -> None:
    """So that a plan that fits is not refused: torch's cap counts segments, a plan tensors."""
    assert TorchMemory(ORDINAL, TOTAL_BYTES).rounding_bytes == 22 * 2**20
