"""The CUDA device's extension module on the simulated runtime, and the machine under it."""

from __future__ import annotations

import ctypes
import importlib.util
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import torch

from memo_train.device import (
    CpuDevice,
    CudaDevice,
    Events,
    ReplayCounts,
    StepAddresses,
    StepLayout,
    get_cpu_device,
)
from memo_train.device._cuda_memory import MemoryReading, TensorMemory

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
        self._control.sim_num_pins.restype = ctypes.c_uint64

    def start(self, seed: int, *, num_devices: int = 1) -> None:
        """A new machine; devices of the one before must be gone."""
        self._control.sim_start(seed, num_devices)

    def adopt(self, address: int, nbytes: int) -> None:
        """Memory of the test's own becomes memory of device 0."""
        self._control.sim_adopt(address, nbytes)

    def host_stream(self, device: int = 0) -> int:
        """Handle of a stream that is the calling thread."""
        return int(self._control.sim_host_stream(device))

    def tensor_entry(self) -> tuple[int, int, int]:
        """What `install_hook` takes to have CPU tensors in device 0's memory by its allocator.

        They are asked for on the calling thread's stream, and new ones are full of 0xFF bytes.
        """
        return self._entry("sim_tensor_alloc", "sim_tensor_free")

    def pluggable_entry(self, library: str, alloc: str, free: str) -> tuple[int, int, int]:
        """The same by the two functions of `library` that torch's pluggable allocator takes."""
        given = ctypes.CDLL(library)
        names = (getattr(given, name) for name in (alloc, free))
        self._control.sim_set_torch_functions(*(ctypes.cast(f, ctypes.c_void_p) for f in names))
        return self._entry("sim_pluggable_alloc", "sim_pluggable_free")

    def _entry(self, alloc: str, free: str) -> tuple[int, int, int]:
        functions = (getattr(self._control, name) for name in (alloc, free))
        addresses = [ctypes.cast(each, ctypes.c_void_p).value or 0 for each in functions]
        assert all(addresses)
        return self.host_stream(), addresses[0], addresses[1]

    def num_pins(self) -> int:
        """How often host memory was registered on this machine."""
        return int(self._control.sim_num_pins())

    def finish(self) -> str:
        """What the machine has found, leaks included; empty if nothing."""
        text = ctypes.create_string_buffer(_MOST_TEXT_BYTES)
        self._control.sim_finish(text, _MOST_TEXT_BYTES)
        return text.value.decode()


class ArenaMemory(TensorMemory):
    """The CPU device's arena, where torch's CPU tensors lie, as the memory of a GPU's tensors."""

    def __init__(self) -> None:
        self._arena = get_cpu_device()

    def read(self) -> MemoryReading:
        counters = self._arena.counters()
        return MemoryReading(
            used_bytes=counters.device_used_bytes,
            peak_bytes=counters.device_peak_bytes,
            reserved_peak_bytes=counters.device_high_water_bytes,
            live_allocations=counters.device_live_allocations,
            allocations=counters.device_allocations,
            cap_bytes=counters.device_cap_bytes,
        )

    def reset_peak(self) -> None:
        self._arena.reset_peak()

    def set_cap(self, nbytes: int | None) -> None:
        self._arena.set_device_cap(nbytes)

    def start_recording(self) -> None:
        self._arena.start_recording()

    def stop_recording(self) -> Events:
        return self._arena.stop_recording()

    def mark(self, value: int) -> None:
        self._arena.mark(value)

    def make_layout(self, addresses: StepAddresses, smallest_bytes: int) -> StepLayout:
        return self._arena.make_layout(addresses)

    def begin_step(self, layout: StepLayout) -> bool:
        return self._arena.begin_step(layout)

    def end_step(self) -> ReplayCounts | None:
        return self._arena.end_step()


class CpuTensorsOnCuda(CudaDevice):
    """The CUDA device as it is, on a simulated machine, for torch's CPU tensors.

    What the tensors lie in is memory of device 0 to the machine, and torch's CPU kernels are work
    of the calling thread, which is the current stream. So the runtime runs on the CUDA device as it
    is. Besides the stream only what names torch's own CUDA is another: its device and generators.
    """

    generators = (torch.default_generator,)

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def start(self, seed: int) -> None:
        """A new machine and a new device on it, the arena being its memory."""
        self._simulation.start(seed)
        self._simulation.adopt(*_arena_range(get_cpu_device()))
        self.use(ArenaMemory(), self._simulation.host_stream())
        self.smallest_planned_bytes = get_cpu_device().smallest_planned_bytes

    def use(self, memory: TensorMemory, stream: int) -> None:
        """A new device on the machine, with the tensors in `memory` and kernels on `stream`."""
        super().__init__(0, current_stream=lambda: stream, memory=memory)
        self.torch_device = torch.device("cpu")

    def finish(self) -> tuple[int, str]:
        """Copies made in both directions, and what the machine has found; destroys the device.

        The arena's one adopted range counts as an allocation that nobody frees.
        """
        counters = self.counters()
        del self._transfer, self.core
        found = self._simulation.finish().replace("leak: 1 device allocations\n", "")
        return counters.d2h_copies + counters.h2d_copies, found


def _arena_range(device: CpuDevice) -> tuple[int, int]:
    device.start_recording()
    address = device.device_alloc(64)
    offset = int(device.stop_recording()["offset"][0])
    device.device_free(address)
    return address - offset, device.core.counters().device.reserved_bytes
