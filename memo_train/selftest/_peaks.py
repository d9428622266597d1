"""The planned peak of device memory beside what a step really used, by everybody who counts it.

Numerics level 2: counts. The step has AdamW's moments, as the plan does.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

import memo_train
from memo_train.selftest._modes import MODES, SMALL, check_mode, llama_step, wrapped
from memo_train.selftest._place import Place
from memo_train.selftest._scenario import Figures, Scenario, ScenarioFailed
from memo_train.testing import run_step

_SAMPLE_S = 0.001
_LIMIT_OVER_PLANNED = 1.15
"""Room for holes: the first step of a shape has no layout yet. Rounding comes on top."""


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
            # Read once more after the end: a step shorter than a sample has a reading too.
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


def planned_peak(place: Place) -> Figures:
    """Each mode's planned peak, and the measured ones under a limit a little above it.

    Raises: ScenarioFailed if the limit was not kept.
    """
    modes = {}
    for mode in MODES:
        gc.collect()
        with place.here():
            modes[mode] = _peaks(place, mode)
    figures: Figures = {"tokens": SMALL.tokens, "modes": modes}
    for mode, peaks in modes.items():
        if peaks["device_peak_bytes"] > peaks["limit_bytes"]:
            raise ScenarioFailed(
                f"{mode}: {peaks['device_peak_bytes']:,} bytes were used, "
                f"the limit was {peaks['limit_bytes']:,}",
                figures,
            )
    return figures


def _peaks(place: Place, mode: str) -> dict[str, Any]:
    """Bytes of the second step, without what others have in use."""
    empty = used_bytes(place)
    model, batch = llama_step(place)
    with wrapped(model, mode):
        told = memo_train.plan(model).prediction
    planned_bytes = told.device_peak_bytes
    # Nobody's plan counts what libraries keep since they were first used, and how memory is cut.
    loaded = used_bytes(place)
    others_bytes = (loaded["device"] or 0) - _sum_bytes([*model.parameters(), *model.buffers()])
    limit_bytes = int(_LIMIT_OVER_PLANNED * told.device_room_bytes)
    # What an allocator rounds up is within the limit: where it is much, a plan may use some of it.
    limit_bytes += others_bytes + place.device.rounding_bytes + _cut_bytes(place)
    with wrapped(model, mode, device_bytes=limit_bytes):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        # The first step is recorded and makes the moments; the second one is the planned one.
        run_step(model, **batch)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        memo_train.memory_report(model)  # waits for the layout
        others = _others(used_bytes(place), empty, _own_bytes(model, optimizer))
        memo_train.reset_stats()
        with MemoryWatch(place) as watch:
            model(**batch).loss.backward()
        check_mode(mode)
    peaks = {
        f"{who}_peak_bytes": None if peak is None else peak - others[who]
        for who, peak in watch.peaks.items()
    }
    return {
        "planned_peak_bytes": planned_bytes,
        "planned_room_bytes": told.device_room_bytes,
        "limit_bytes": limit_bytes - (others["device"] or 0),
        **peaks,
    }


def _cut_bytes(place: Place) -> int:
    """Bytes of a GPU that its allocator has reserved and no tensor is in: a cap counts them."""
    if not place.on_gpu or not _torch_counts():
        return 0
    device = place.torch_device
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _others(
    used: dict[str, int | None], empty: dict[str, int | None], own_bytes: int
) -> dict[str, int]:
    """Bytes that are not the step's: of other models, and work spaces that libraries keep.

    Of the driver's figure only what was in use before the model was made: it counts chunks.
    """
    others = {who: (used_now or 0) - own_bytes for who, used_now in used.items()}
    return others | {"driver": empty["driver"] or 0}


def _own_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    moments = (value for state in optimizer.state.values() for value in state.values())
    return _sum_bytes([*model.parameters(), *model.buffers(), *moments])


def _sum_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


PEAK_SCENARIO = Scenario("planned peak", planned_peak)
