"""Garbage is collected, and the device used, whenever it asks for the current stream.

python garbage_in_lookups.py EXTENSION: ends by itself only if no lock of the core is held while
Python runs. Before, the stream was looked up under the mutex that frees host memory.
"""

from __future__ import annotations

import faulthandler
import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from memo_train.device import CudaDevice, StepAddresses
from memo_train.device._cuda_memory import MemoMemory
from tests.cuda.conftest import use_simulation
from tests.cuda.simulated import Simulation

HANG_S = 60
NBYTES = 4096


class Dropped:
    """As a swapped storage in a cycle: its host range is given back when garbage is collected."""

    def __init__(self, device: CudaDevice) -> None:
        self._device, self._host, self._self = device, device.host_alloc(NBYTES), self

    def __del__(self) -> None:
        self._device.host_free(self._host)


class Lookup:
    """The current stream; each time it is asked for, all that the core locks is used first."""

    def __init__(self, stream: int) -> None:
        self.device: CudaDevice | None = None
        self.num_lookups = 0
        self._stream, self._inside = stream, False

    def __call__(self) -> int:
        if self.device is None or self._inside:
            return self._stream
        self._inside = True
        self.num_lookups += 1
        Dropped(self.device)
        gc.collect()
        self._use_every_lock(self.device)
        self._inside = False
        return self._stream

    def _use_every_lock(self, device: CudaDevice) -> None:
        data, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
        device.copy_to_host(host, data, NBYTES).wait()
        device.copy_to_device(data, host, NBYTES).wait()
        device.synchronize()
        device.host_free(host)
        device.device_free(data)
        device.mark(1)
        device.reset_peak()
        assert device.counters().device_used_bytes >= 0
        device.set_host_cap(None)
        device.set_device_cap(None)


def use(device: CudaDevice) -> None:
    """Every method that asks for the stream."""
    data, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
    device.start_recording()
    sent = device.copy_to_host(host, data, NBYTES)
    sent.wait()
    back = device.copy_to_device(data, host, NBYTES)
    back.wait()
    device.now()
    device.stop_recording()
    one = np.array([512], np.int64)
    none = np.array([0], np.int64)
    layout = device.make_layout(
        StepAddresses(size_bytes=one, offset_bytes=none, mark_values=none, mark_firsts=none)
    )
    device.begin_step(layout)
    device.end_step()
    device.host_free(host)
    device.device_free(data)


def main() -> None:
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    simulation = Simulation(Path(sys.argv[1]))
    simulation.start(0)
    gc.disable()  # it runs where this script says
    with pytest.MonkeyPatch.context() as patch:
        use_simulation(patch, simulation)
        lookup = Lookup(simulation.host_stream())
        device = CudaDevice(0, current_stream=lookup, memory=MemoMemory(0, lookup))
        lookup.device = device
        use(device)
    print(lookup.num_lookups, flush=True)


main()
