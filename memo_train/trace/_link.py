"""Measures the link between device and host: each way, both ways at once, all ranks at once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist

from memo_planner.profile import Link
from memo_planner.trace import LinkRates
from memo_train.device import CopyEvent, CudaDevice, Device
from memo_train.device.errors import HostMemoryExceeded

_CPU_COPY_BYTES = 2 * 2**20
_CUDA_COPY_BYTES = 64 * 2**20
"""Large enough that asking for a copy takes little time beside it: 1 % at 50 GB/s."""
_LEAST_COPY_BYTES = 2**20
"""Where memory holds no more; a smaller copy says nothing of the link."""

_REPEATS = 3
_LOADED_COPIES = 12
"""Copies a loaded measurement queues each way: enough that ranks overlap for most of it."""


class CopyBuffers:
    """`num_bytes` on both sides for one copy each way, of its own for each direction.

    Use as a context manager.
    """

    def __init__(self, device: Device, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._device = device
        self._hosts: list[int] = []
        self._tensors: list[torch.Tensor] = []

    def __enter__(self) -> CopyBuffers:
        """Raises: torch.OutOfMemoryError, HostMemoryExceeded."""
        try:
            for _ in range(2):
                self._hosts.append(self._device.host_alloc(self.num_bytes))
                self._tensors.append(self._tensor())
            self._touch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._device.synchronize()
        while self._hosts:
            self._device.host_free(self._hosts.pop())
        self._tensors.clear()

    def to_host(self) -> CopyEvent:
        """Start the copy to the host."""
        return self._device.copy_to_host(
            self._hosts[0], self._tensors[0].data_ptr(), self.num_bytes
        )

    def to_device(self) -> CopyEvent:
        """Start the copy to the device."""
        return self._device.copy_to_device(
            self._tensors[1].data_ptr(), self._hosts[1], self.num_bytes
        )

    def _tensor(self) -> torch.Tensor:
        device = self._device.torch_device
        return torch.empty(self.num_bytes, dtype=torch.uint8, device=device)

    def _touch(self) -> None:
        """Write every page once: a system gives the CPU's memory when it is first written."""
        for host, tensor in zip(self._hosts, self._tensors, strict=True):
            self._device.copy_to_device(tensor.data_ptr(), host, self.num_bytes).wait()
            self._device.copy_to_host(host, tensor.data_ptr(), self.num_bytes)
        self._device.synchronize()


def measure_link(device: Device, group: dist.ProcessGroup | None = None) -> Link:
    """Bytes per second of one copy each way, the best of three; one direction at a time.

    A copy is 2 MiB on the CPU device, 64 MiB on a GPU, or what memory holds. Concerns this process
    alone: other ranks need not call it.

    group: ranks that all copy at once, both ways, as in a step; the figures are then the slowest
    rank's, and it is a collective call.
    """
    if group is not None:
        return _measure_together(device, group)
    with _buffers(device) as buffers:
        return Link(
            d2h_bytes_per_s=buffers.num_bytes / _best_s(device, buffers.to_host),
            h2d_bytes_per_s=buffers.num_bytes / _best_s(device, buffers.to_device),
        )


def _measure_together(device: Device, group: dist.ProcessGroup) -> Link:
    with _buffers(device) as buffers:
        dist.barrier(group=group)
        rates = _rates(device, buffers, ["d2h", "h2d"])
    d2h, h2d = _slowest(rates, device, group)
    return Link(d2h_bytes_per_s=d2h, h2d_bytes_per_s=h2d)


def measure_link_rates(device: Device) -> LinkRates:
    """The link alone, both directions at once, and with every rank copying both ways at once.

    With torch.distributed initialised this is a collective call: every rank of the default group
    must make it, and all get the same figures, the slowest rank's. Without it there is one rank.
    """
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    with _buffers(device) as buffers:
        alone: list[float] = []
        for rank in range(num_ranks):
            _meet()
            # One rank at a time; the others wait at the next meeting.
            if rank == (dist.get_rank() if num_ranks > 1 else 0):
                alone = [
                    *_rates(device, buffers, ["d2h"]),
                    *_rates(device, buffers, ["h2d"]),
                    *_rates(device, buffers, ["d2h", "h2d"]),
                ]
        _meet()
        loaded = _rates(device, buffers, ["d2h", "h2d"])
        _meet()
    d2h, h2d, d2h_both, h2d_both, d2h_all, h2d_all = _slowest([*alone, *loaded], device)
    return LinkRates(
        num_ranks=num_ranks,
        d2h_alone_bytes_per_s=d2h,
        h2d_alone_bytes_per_s=h2d,
        d2h_both_bytes_per_s=d2h_both,
        h2d_both_bytes_per_s=h2d_both,
        d2h_all_ranks_bytes_per_s=d2h_all,
        h2d_all_ranks_bytes_per_s=h2d_all,
    )


@contextmanager
def _buffers(device: Device) -> Iterator[CopyBuffers]:
    """Buffers of the largest copies that memory holds, of the size the device's link needs."""
    num_bytes = _CUDA_COPY_BYTES if isinstance(device, CudaDevice) else _CPU_COPY_BYTES
    with ExitStack() as held:
        yield _largest(device, num_bytes, held)


def _largest(device: Device, num_bytes: int, held: ExitStack) -> CopyBuffers:
    """Buffers of `num_bytes`, or of a half, a quarter and so on, closed with `held`."""
    while True:
        try:
            return held.enter_context(CopyBuffers(device, num_bytes))
        except (torch.OutOfMemoryError, HostMemoryExceeded):
            if num_bytes <= _LEAST_COPY_BYTES:
                raise
        num_bytes //= 2


def _best_s(device: Device, copy: Callable[[], CopyEvent]) -> float:
    best_s = float("inf")
    for _ in range(_REPEATS):
        start_s = device.now()
        copy()
        device.synchronize()
        # The best: whatever disturbs a copy makes it slower.
        best_s = min(best_s, device.now() - start_s)
    return best_s


def _rates(device: Device, buffers: CopyBuffers, ways: Sequence[str]) -> list[float]:
    """Bytes per second of each of `ways`, all at once: medians of three runs."""
    start = {"d2h": buffers.to_host, "h2d": buffers.to_device}
    copies = {way: start[way] for way in ways}
    runs = [_busy_s(device, copies) for _ in range(_REPEATS)]
    num_bytes = _LOADED_COPIES * buffers.num_bytes
    return [num_bytes / max(statistics.median(run[way] for run in runs), 1e-9) for way in ways]


def _busy_s(device: Device, copies: Mapping[str, Callable[[], CopyEvent]]) -> dict[str, float]:
    """Queue several copies each way at once; seconds in which each way had any under way."""
    before = device.counters()
    for _ in range(_LOADED_COPIES):
        for copy in copies.values():
            copy()
    device.synchronize()
    after = device.counters()
    return {w: getattr(after, f"{w}_busy_s") - getattr(before, f"{w}_busy_s") for w in copies}


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()


def _slowest(
    rates: Sequence[float], device: Device, group: dist.ProcessGroup | None = None
) -> list[float]:
    """Each rate on the rank where it is least."""
    least = torch.tensor(rates, dtype=torch.float64)
    if dist.is_initialized():
        if dist.get_backend(group) == "nccl":
            # NCCL reduces on GPUs only.
            least = least.to(device.torch_device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group)
    values: list[float] = least.tolist()
    return values
