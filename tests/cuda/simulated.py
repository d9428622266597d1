"""The CUDA device's extension module on the simulated runtime, and the machine under it."""

from __future__ import annotations

import ctypes
import importlib.util
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from memo_train.device import CpuDevice, get_cpu_device
from memo_train.device.transfers import Transfers

_MOST_TEXT_BYTES = 4000


class Simulation:
    """`module` is memo_train._cuda for one simulated machine at a time."""

    def __init__(self, path: Path) -> None:
        name = f"{path}._cuda"  # pybind11 gives the module of the same name again
        loader = ExtensionFileLoader(name, str(path))
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        self.module: ModuleType = importlib.util.module_from_spec(spec)
        loader.exec_module(self.module)
        self._control = ctypes.CDLL(str(path))
        self._control.sim_start.argtypes = [ctypes.c_uint64, ctypes.c_int]
        self._control.sim_adopt.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        self._control.sim_host_stream.restype = ctypes.c_size_t

    def start(self, seed: int, *, num_devices: int = 1) -> None:
        """A new machine; devices of the one before must be gone."""
        self._control.sim_start(seed, num_devices)

    def adopt(self, address: int, nbytes: int) -> None:
        """Memory of the test's own becomes memory of device 0."""
        self._control.sim_adopt(address, nbytes)

    def host_stream(self, device: int = 0) -> int:
        """Handle of a stream that is the calling thread."""
        return int(self._control.sim_host_stream(device))

    def finish(self) -> str:
        """What the machine has found, leaks included; empty if nothing."""
        text = ctypes.create_string_buffer(_MOST_TEXT_BYTES)
        self._control.sim_finish(text, _MOST_TEXT_BYTES)
        return text.value.decode()


class CpuTensorsOnCuda(Transfers, CpuDevice):
    """The CPU device's tensors with a CUDA device's host memory, streams, events and copies.

    To the simulated machine the arena is memory of device 0, and torch's CPU kernels are work of
    the calling thread. So the runtime runs on the CUDA device as it is.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.core = get_cpu_device().core
        self._simulation = simulation
        self._cuda: Any = None

    def start(self, seed: int) -> None:
        """A new machine and a new device on it."""
        self._simulation.start(seed)
        self._simulation.adopt(*_arena_range(get_cpu_device()))
        stream = self._simulation.host_stream()
        self._cuda = self._simulation.module.CudaDevice(0, lambda: stream)
        self._transfer = self._simulation.module.Transfer(self._cuda)

    def synchronize(self) -> None:
        """Block until all copies are done."""
        self._cuda.synchronize()

    def finish(self) -> tuple[int, str]:
        """Copies made in both directions, and what the machine has found; destroys the device.

        The arena's one adopted range counts as an allocation that nobody frees.
        """
        counters = self._cuda.counters()
        del self._transfer, self._cuda
        found = self._simulation.finish().replace("leak: 1 device allocations\n", "")
        return counters.to_host.copies + counters.to_device.copies, found


def _arena_range(device: CpuDevice) -> tuple[int, int]:
    device.start_recording()
    address = device.device_alloc(64)
    offset = int(device.stop_recording()["offset"][0])
    device.device_free(address)
    return address - offset, device.core.counters().device.reserved_bytes
