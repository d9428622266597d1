"""Which device tensors lie on, and which devices this process uses."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from memo_train.device._cpu import cpu_device_if_made, get_cpu_device
from memo_train.device._cuda import cuda_devices_made, get_cuda_device
from memo_train.device._device import Device
from memo_train.device.errors import UnsupportedDevice


def device_of(tensors: Iterable[torch.Tensor]) -> Device:
    """The device that all `tensors` (a model's parameters) lie on; the CPU if there are none.

    Raises:
        UnsupportedDevice: they lie on several devices, or on one that is neither CPU nor CUDA.
        CudaUnavailable: on a GPU, and memo-train was built without CUDA.
    """
    # By name: torch's devices have no order.
    places = sorted({str(tensor.device) for tensor in tensors})
    if len(places) > 1:
        raise UnsupportedDevice(
            f"the model's parameters lie on {len(places)} devices ({', '.join(places)}); "
            "memo-train runs a model on one: move it, or start a process for each GPU"
        )
    place = torch.device(places[0] if places else "cpu")
    if place.type == "cpu":
        return get_cpu_device()
    if place.type == "cuda":
        return get_cuda_device(place.index)
    way_out = "give it memory first" if place.type == "meta" else "move it"
    raise UnsupportedDevice(
        f"the model's parameters lie on {place}; memo-train runs on cpu and cuda: {way_out}, for "
        f"example with model.{'to_empty' if place.type == 'meta' else 'to'}(device='cuda')"
    )


def devices_in_use() -> tuple[Device, ...]:
    """The devices that this process has used; the CPU's if there is none yet."""
    cpu = cpu_device_if_made()
    made = (*(() if cpu is None else (cpu,)), *cuda_devices_made())
    # So that `stats` before the first `wrap` reads zeros.
    return made or (get_cpu_device(),)
