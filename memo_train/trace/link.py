"""Measures the link between device and host: each way, both ways at once, all ranks at once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from memo_planner.profile import Link
from memo_planner.trace.profile_file import LinkRates
from memo_train.device.device import CopyEvent, Device

_COPY_BYTES = 2 * 2**20
_REPEATS = 3
_LOADED_COPIES = 12
"""Copies a loaded measurement queues each way: enough that ranks overlap for most of it."""


def measure_link(device: Device) -> Link:
    """Bytes per second of a 2 MiB copy each way, the best of three; one direction at a time.

    Concerns this process alone: other ranks need not call it.
    """
    with _Buffers(device) as buffers:
        return Link(
            d2h_bytes_per_s=_best(device, buffers.to_host),
            h2d_bytes_per_s=_best(device, buffers.to_device),
        )


def measure_link_rates(device: Device) -> LinkRates:
    """The link alone, both directions at once, and with every rank copying both ways at once.

    With torch.distributed initialised this is a collective call: every rank of the default group
    must make it, and all get the same figures, the slowest rank's. Without it there is one rank.
    """
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    with _Buffers(device) as buffers:
        alone: list[float] = []
        for rank in range(num_ranks):
            _meet()
            if rank == (dist.get_rank() if num_ranks > 1 else 0):
                d2h, h2d = (
                    _rates(device, [buffers.to_host])[0],
                    _rates(device, [buffers.to_device])[1],
                )
                alone = [d2h, h2d, *_rates(device, buffers.both)]
        _meet()
        loaded = _rates(device, buffers.both)
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


class _Buffers:
    """Memory on both sides for one copy each way, of its own for each direction."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._tensors = [
            torch.zeros(_COPY_BYTES, dtype=torch.uint8, device=device.torch_device)
            for _ in range(2)
        ]
        self._hosts: list[int] = []

    def __enter__(self) -> _Buffers:
        self._hosts = [self._device.host_alloc(_COPY_BYTES) for _ in range(2)]
        return self

    def __exit__(self, *error: object) -> None:
        self._device.synchronize()
        for host in self._hosts:
            self._device.host_free(host)

    def to_host(self) -> CopyEvent:
        return self._device.copy_to_host(self._hosts[0], self._tensors[0].data_ptr(), _COPY_BYTES)

    def to_device(self) -> CopyEvent:
        return self._device.copy_to_device(self._tensors[1].data_ptr(), self._hosts[1], _COPY_BYTES)

    @property
    def both(self) -> list[Callable[[], CopyEvent]]:
        return [self.to_host, self.to_device]


def _best(device: Device, copy: Callable[[], CopyEvent]) -> float:
    best_s = float("inf")
    for _ in range(_REPEATS):
        start = device.now()
        copy().wait()
        best_s = min(best_s, device.now() - start)
    return _COPY_BYTES / best_s


def _rates(device: Device, copies: Sequence[Callable[[], CopyEvent]]) -> list[float]:
    """Bytes per second to the host and to the device while `copies` run: medians of three runs.

    0 for a direction without a copy.
    """
    runs = [_run_together(device, copies) for _ in range(_REPEATS)]
    return [statistics.median(rates) for rates in zip(*runs, strict=True)]


def _run_together(device: Device, copies: Sequence[Callable[[], CopyEvent]]) -> tuple[float, float]:
    """Queue several copies each way at once; the device itself knows how long each way was busy."""
    before = device.counters()
    for _ in range(_LOADED_COPIES):
        for copy in copies:
            copy()
    device.synchronize()
    after = device.counters()
    return (
        (after.d2h_bytes - before.d2h_bytes) / max(after.d2h_busy_s - before.d2h_busy_s, 1e-9),
        (after.h2d_bytes - before.h2d_bytes) / max(after.h2d_busy_s - before.h2d_busy_s, 1e-9),
    )


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()


def _slowest(rates: Sequence[float], device: Device) -> list[float]:
    """Each rate on the rank where it is least."""
    least = torch.tensor(rates, dtype=torch.float64, device=device.torch_device)
    if dist.is_initialized():
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
    values: list[float] = least.tolist()
    return values
