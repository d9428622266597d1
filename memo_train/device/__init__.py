"""Devices under the runtime: memory, asynchronous copies and their counters."""

from memo_train.device.choose import device_of, devices_in_use
from memo_train.device.counters import CpuCounters, DeviceCounters
from memo_train.device.cpu import CpuDevice, get_cpu_device
from memo_train.device.cuda import CudaDevice, get_cuda_device
from memo_train.device.device import CopyEvent, Device
from memo_train.device.rows import Rows

__all__ = [
    "CopyEvent",
    "CpuCounters",
    "CpuDevice",
    "CudaDevice",
    "Device",
    "DeviceCounters",
    "Rows",
    "device_of",
    "devices_in_use",
    "get_cpu_device",
    "get_cuda_device",
]
