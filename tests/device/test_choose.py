"""Which device a model is trained on, and what is said when there is none for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import memo_train
from memo_train.device import (
    CpuDevice,
    CudaDevice,
    CudaUnavailable,
    Device,
    device_of,
    devices_in_use,
    get_cpu_device,
)
from memo_train.device.errors import UnsupportedDevice
from memo_train.errors import MemoError
from tests.runtime.small_llama import own_llama


def lying_on(*devices: str) -> list[Any]:
    """Stand-ins for tensors of devices that this machine may not have."""
    return [SimpleNamespace(device=torch.device(device)) for device in devices]


def test_cpu_tensors_are_the_cpu_devices() -> None:
    assert device_of(own_llama().parameters()) is get_cpu_device()
    assert device_of([]) is get_cpu_device()
    assert get_cpu_device() in devices_in_use()


def test_both_kinds_are_devices() -> None:
    for kind in (CpuDevice, CudaDevice):
        assert issubclass(kind, Device)
        assert not getattr(kind, "__abstractmethods__", None)


def test_a_gpu_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memo_train.device._choose.get_cuda_device", lambda ordinal: ordinal)
    assert device_of(lying_on("cuda:3", "cuda:3")) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(CudaUnavailable):
        device_of(lying_on("cuda:0"))


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (("cpu", "cuda:0"), r"lie on 2 devices \(cpu, cuda:0\); .* a process for each GPU"),
        (("cuda:1", "cuda:0"), r"lie on 2 devices \(cuda:0, cuda:1\)"),
        (("mps",), r"lie on mps; memo-train runs on cpu and cuda: move it"),
        (("xpu:0",), r"lie on xpu:0; .*model\.to\(device='cuda'\)"),
        (("meta",), r"lie on meta; .*give it memory first.*model\.to_empty\(device='cuda'\)"),
    ],
    ids=str,
)
def test_other_places_are_refused(devices: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnsupportedDevice, match=message):
        device_of(lying_on(*devices))


def test_wrap_refuses_them_and_leaves_the_model() -> None:
    model = own_llama().to("meta")
    before = sorted(vars(model))
    with pytest.raises(MemoError, match="lie on meta"):
        memo_train.wrap(model)
    assert sorted(vars(model)) == before
    model = own_llama()
    model.model.norm.to("meta")
    with pytest.raises(MemoError, match=r"lie on 2 devices \(cpu, meta\)"):
        memo_train.wrap(model)
