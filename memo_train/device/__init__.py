"""Devices under the runtime: memory, asynchronous copies and their counters."""

from memo_train.device.counters import DeviceCounters
from memo_train.device.cpu import CpuDevice, Event, Rows, get_cpu_device

__all__ = ["CpuDevice", "DeviceCounters", "Event", "Rows", "get_cpu_device"]
