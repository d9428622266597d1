"""A device and where torch puts its tensors: what a scenario needs to run on either kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from memo_train.device import CpuDevice, CudaDevice, get_cpu_device, get_cuda_device
from memo_train.trace import CopyBuffers

_LATE_CYCLES = 10_000_000
"""About 5 ms of a GPU."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """`device` copies the memory of tensors on `torch_device`.

    backlog_bytes: size of the copy each way that lets later copies be late.
    """

    device: CpuDevice | CudaDevice
    torch_device: torch.device
    backlog_bytes: int = 32 * 2**20

    @property
    def on_gpu(self) -> bool:
        """Whether kernels run behind the calling thread."""
        return self.torch_device.type == "cuda"

    @contextmanager
    def here(self, *, own_stream: bool = False) -> Iterator[None]:
        """Tensors and kernels of the calling thread go to this device; to a new stream if asked."""
        if not self.on_gpu:
            yield
            return
        with torch.cuda.device(self.torch_device):
            stream: Any = torch.cuda.Stream() if own_stream else None  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                yield

    def delay_compute(self) -> None:
        """Let what compute does next be late: a kernel spins before it. Nothing on the CPU."""
        if self.on_gpu:
            with torch.cuda.device(self.torch_device):
                torch.cuda._sleep(_LATE_CYCLES)  # type: ignore[no-untyped-call]

    def backlog(self) -> CopyBuffers:
        """Large copies; while they are under way, those asked for after them wait."""
        return CopyBuffers(self.device, self.backlog_bytes)

    def finish(self) -> None:
        """Block until compute and copies are done."""
        if self.on_gpu:
            torch.cuda.synchronize(self.torch_device)
        self.device.synchronize()


def cpu_place() -> Place:
    """The CPU device. Raises: HookUnavailable."""
    return Place(device=get_cpu_device(), torch_device=torch.device("cpu"))


def cuda_place(ordinal: int) -> Place:
    """The GPU `ordinal`. Raises: CudaUnavailable."""
    return Place(device=get_cuda_device(ordinal), torch_device=torch.device("cuda", ordinal))
