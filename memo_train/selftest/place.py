"""A device and where torch puts its tensors: what a scenario needs to run on either kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from memo_train.device.cpu import CpuDevice, get_cpu_device
from memo_train.device.cuda import CudaDevice, get_cuda_device

_LATE_CYCLES = 10_000_000
"""About 5 ms of a GPU."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """`device` copies the memory of tensors on `torch_device`."""

    device: CpuDevice | CudaDevice
    torch_device: torch.device

    def delay_compute(self) -> None:
        """Let what compute does next be late, so that a copy that does not wait comes too early.

        The CPU is its own compute stream and cannot be late.
        """
        if self.torch_device.type == "cuda":
            torch.cuda._sleep(_LATE_CYCLES)  # type: ignore[no-untyped-call]

    def finish(self) -> None:
        """Block until compute and copies are done."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)
        self.device.synchronize()


def cpu_place() -> Place:
    """The CPU device."""
    return Place(device=get_cpu_device(), torch_device=torch.device("cpu"))


def cuda_place(ordinal: int) -> Place:
    """The GPU `ordinal`. Raises: CudaUnavailable."""
    return Place(device=get_cuda_device(ordinal), torch_device=torch.device("cuda", ordinal))
