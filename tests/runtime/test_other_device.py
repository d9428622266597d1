"""What comes back from the host, or is seen as part of another tensor, lies where it lay."""

from __future__ import annotations

import pytest
import torch

from memo_train.runtime import CopiesInFlight
from memo_train.runtime._saved import SavedTensors
from memo_train.runtime._swap import WholeTensor
from memo_train.trace._fake_device import A800, FakeDevice

META = torch.device("meta")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """A device that is not the CPU: its tensors have no memory, and its copies move nothing."""
    device = FakeDevice(A800)
    monkeypatch.setattr(device, "torch_device", META)
    monkeypatch.setattr(device, "owns", lambda ptr: True)
    return device


def strided(rows: int = 40) -> torch.Tensor:
    return torch.empty(rows, 64, 32, device=META).transpose(1, 2)[5:]


def assert_alike(tensor: torch.Tensor, other: torch.Tensor) -> None:
    assert (tensor.device, tensor.dtype, tensor.shape) == (META, other.dtype, other.shape)
    assert (tensor.stride(), tensor.storage_offset()) == (other.stride(), other.storage_offset())


@pytest.mark.parametrize("swap", [True, False])
def test_a_whole_tensor(elsewhere: FakeDevice, swap: bool) -> None:
    tensor, in_flight = strided(), CopiesInFlight(1 << 30)
    whole = WholeTensor(tensor, elsewhere, in_flight, swap=swap)
    assert whole.swapped_bytes == (tensor.untyped_storage().nbytes() if swap else 0)
    whole.prefetch()
    assert_alike(whole.take(), tensor)
    assert elsewhere.counters().h2d_copies == swap


def test_a_saved_tensor(elsewhere: FakeDevice) -> None:
    tensor, saved = strided(), SavedTensors()
    entry = saved.save(tensor)
    saved.settle({}, (), (elsewhere, CopiesInFlight(1 << 30)))
    assert saved.swapped_bytes == tensor.untyped_storage().nbytes()
    assert_alike(saved.restore(entry), tensor)
    assert elsewhere.counters().h2d_copies == 1


def test_a_part_of_a_known_tensor() -> None:
    x, saved = torch.empty(40, 64, 32, device=META), SavedTensors()
    entry = saved.save(x[3:7])
    saved.settle({"x": x})
    saved.bind(x=x)
    assert_alike(saved.restore(entry), x[3:7])
