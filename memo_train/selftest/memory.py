"""Most bytes of a device in use during a `with`, by everybody who counts them."""

from __future__ import annotations

import threading

import torch

from memo_train.selftest.place import Place

_SAMPLE_S = 0.001


class MemoryWatch:
    """`peaks` after the `with`: three readings in bytes, None for those that the device has not.

    device: the device's own counters. torch: `torch.cuda.max_memory_allocated`. driver: the most
    that `cudaMemGetInfo` said was in use, by all processes of the GPU, looked at each millisecond.
    """

    def __init__(self, place: Place) -> None:
        self.peaks: dict[str, int | None] = {}
        self._place = place
        self._driver_bytes = 0
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._place.finish()
        self._place.device.reset_peak()
        if self._place.on_gpu:
            _reset_torch_peak(self._place.torch_device)
            self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._place.finish()
        self._over.set()
        device, on_gpu = self._place.torch_device, self._place.on_gpu
        if on_gpu:
            self._sampler.join()
        self.peaks = {
            "device": self._place.device.counters().device_peak_bytes,
            "torch": _torch_peak_bytes(device) if on_gpu else None,
            "driver": self._driver_bytes if on_gpu else None,
        }

    def _sample(self) -> None:
        over = False
        while not over:
            over = self._over.wait(_SAMPLE_S)
            self._driver_bytes = max(self._driver_bytes, driver_used_bytes(self._place))


def used_bytes(place: Place) -> dict[str, int | None]:
    """What is in use now, by the names of `MemoryWatch`, with torch's free memory given back."""
    place.finish()
    used: dict[str, int | None] = {"device": place.device.counters().device_used_bytes}
    if not place.on_gpu:
        return used | {"torch": None, "driver": None}
    torch.cuda.empty_cache()
    torch_bytes = None
    if _torch_counts():
        torch_bytes = torch.cuda.memory_allocated(place.torch_device)
    return used | {"torch": torch_bytes, "driver": driver_used_bytes(place)}


def driver_used_bytes(place: Place) -> int:
    """Bytes of a GPU that `cudaMemGetInfo` says are not free."""
    free_bytes, total_bytes = torch.cuda.mem_get_info(place.torch_device)
    return total_bytes - free_bytes


def _torch_counts() -> bool:
    """Whether torch's own allocator is in place: it does not count another one's memory."""
    return torch.cuda.get_allocator_backend() != "pluggable"


def _reset_torch_peak(device: torch.device) -> None:
    if _torch_counts():
        torch.cuda.reset_peak_memory_stats(device)


def _torch_peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if _torch_counts() else None
