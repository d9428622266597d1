"""Fills a machine's figures in from NVML, on a machine that has NVIDIA devices.

`nvidia-ml-py` is optional: without it, or without a driver, the error says so.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from memo_planner.errors import InvalidInput
from memo_planner.hardware._machine import Hardware
from memo_planner.hardware._named import LOADED_SHARE, NAMED

_PCIE_BYTES_PER_S_PER_LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Source: PCI Express base specification, line rate less encoding."""
_PARTS = {"A800": "a800", "A100": "a100", "H100": "h100", "H200": "h200", "4090": "rtx4090"}


def this_machine() -> Hardware:
    """This node, as NVML and the operating system describe it; the rest from the closest machine.

    Raises: InvalidInput without nvidia-ml-py, without a driver, without a device, or with devices
    that differ.
    Source: NVML API reference (device queries).
    """
    nvml = _nvml()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        found = {_described(nvml, handle) for handle in handles}
    except nvml.NVMLError as error:
        raise InvalidInput(f"NVML could not be read: {error}") from error
    finally:
        nvml.nvmlShutdown()
    if len(found) != 1:
        names = sorted(name for name, *_ in found)
        raise InvalidInput(f"a machine has devices of one kind; NVML shows {names or 'none'}")
    return _hardware(*found.pop(), num_devices=len(handles))


def _nvml() -> Any:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        raise InvalidInput(
            "nvidia-ml-py is not installed; install it, or name a machine: " + ", ".join(NAMED)
        ) from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise InvalidInput(
            f"NVML finds no driver here ({error}); name a machine: {', '.join(NAMED)}"
        ) from error
    return nvml


def _described(nvml: Any, handle: Any) -> tuple[str, int, int, int]:
    """Name, bytes, PCIe generation and lanes of a device."""
    name = nvml.nvmlDeviceGetName(handle)
    return (
        # Old releases of nvidia-ml-py return bytes.
        name.decode() if isinstance(name, bytes) else str(name),
        int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        # The most, not the current: an idle device slows its link down.
        int(nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)),
        int(nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)),
    )


def _hardware(
    name: str, device_bytes: int, generation: int, lanes: int, *, num_devices: int
) -> Hardware:
    closest = _closest(name)
    per_lane = _PCIE_BYTES_PER_S_PER_LANE.get(generation)
    if per_lane is None or lanes < 1:
        raise InvalidInput(
            f"NVML shows PCIe generation {generation} with {lanes} lanes; "
            f"known generations: {sorted(_PCIE_BYTES_PER_S_PER_LANE)}"
        )
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    link = lanes * per_lane
    here = Hardware(**{**closest.__dict__, "name": f"{name} x{num_devices}"})
    here = here.with_figures("NVML", gpus_per_node=num_devices, device_bytes=device_bytes)
    here = here.with_figures("the operating system", host_nominal_bytes=host_bytes)
    here = here.with_figures(
        "assumption: nine tenths of the node's memory", host_usable_bytes=host_bytes * 9 // 10
    )
    here = here.with_figures(
        f"NVML: PCIe {generation}.0 x{lanes}; assumption: 0.8 of it reached",
        d2h_alone_bytes_per_s=0.8 * link,
        h2d_alone_bytes_per_s=0.8 * link,
    )
    return here.with_figures(
        f"NVML: PCIe {generation}.0 x{lanes}; assumption: {LOADED_SHARE} of it with all ranks "
        "copying; measure it under load",
        d2h_loaded_bytes_per_s=LOADED_SHARE * link,
        h2d_loaded_bytes_per_s=LOADED_SHARE * link,
    )


def _closest(device_name: str) -> Hardware:
    """The named machine whose peak and interconnects a device shares. Raises: InvalidInput."""
    for part, start in _PARTS.items():
        if part in device_name:
            return next(each for each in NAMED.values() if each.name.startswith(start))
    raise InvalidInput(
        f"no peak FLOP/s is known for {device_name!r}; take the closest of {', '.join(NAMED)} "
        "and override its figures"
    )
