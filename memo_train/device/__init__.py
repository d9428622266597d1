"""Devices under the runtime: memory, asynchronous copies and their counters."""

from memo_train.device._choose import device_of, devices_in_use
from memo_train.device._counters import CpuCounters, DeviceCounters
from memo_train.device._cpu import CpuDevice, get_cpu_device
from memo_train.device._cuda import CudaDevice, get_cuda_device, load_cuda
from memo_train.device._device import CopyEvent, Device, PlainCopies, Rows, memory_share_bytes
from memo_train.device._steps import (
    OUTSIDE,
    Departure,
    EventKind,
    Events,
    ReplayCounts,
    StepAddresses,
    StepLayout,
)
from memo_train.device.errors import CudaUnavailable, DeviceError, InvalidDeviceArgument

__all__ = [
    "OUTSIDE",
    "CopyEvent",
    "CpuCounters",
    "CpuDevice",
    "CudaDevice",
    "CudaUnavailable",
    "Departure",
    "Device",
    "DeviceCounters",
    "DeviceError",
    "EventKind",
    "Events",
    "InvalidDeviceArgument",
    "PlainCopies",
    "ReplayCounts",
    "Rows",
    "StepAddresses",
    "StepLayout",
    "device_of",
    "devices_in_use",
    "get_cpu_device",
    "get_cuda_device",
    "load_cuda",
    "memory_share_bytes",
]
