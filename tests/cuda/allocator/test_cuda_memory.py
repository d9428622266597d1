"""The CUDA allocator as torch and Python reach it, on the simulated runtime."""

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memo_train.device import InvalidDeviceArgument
from memo_train.device._cuda_memory import (
    allocator_installed,
    cuda_memory,
    install_cuda_allocator,
    release_cuda_memory,
    reset_cuda_peak,
    set_cuda_cap,
)
from tests.cuda.compile import Compiler
from tests.cuda.run_check import run_script
from tests.cuda.simulated import Simulation

HERE = Path(__file__).parent
CHUNK_BYTES = 64 << 20
PLACE = 7


@pytest.fixture
def own_simulation(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Simulation]:
    """A module whose allocators, which live as long as the process, no other test has seen."""
    simulation = Simulation(Path(shutil.copy(compiler.extension(), tmp_path / "_cuda.so")))
    monkeypatch.setattr("memo_train.device._cuda_memory.load_cuda", lambda: simulation.module)
    simulation.start(0)
    yield simulation
    release_cuda_memory(0)
    assert simulation.finish() in ("", "leak: 1 events\n")  # the allocator keeps its events


@dataclass(frozen=True)
class Entry:
    """The C functions of the extension, on device 0 and the default stream."""

    library: ctypes.CDLL

    def ask(self, nbytes: int) -> tuple[int, int, str]:
        """Outcome (0 served, 1 refused, 2 failed), address and error of an allocation."""
        data, error = ctypes.c_void_p(), ctypes.create_string_buffer(512)
        asked = (ctypes.c_ssize_t(nbytes), 0, None, error, ctypes.c_size_t(512))
        outcome = self.library.memo_cuda_alloc(ctypes.byref(data), *asked)
        return outcome, data.value or 0, error.value.decode()

    def alloc(self, nbytes: int) -> int:
        outcome, address, error = self.ask(nbytes)
        assert outcome == 0, error
        return address

    def free(self, address: int) -> None:
        self.library.memo_cuda_free(ctypes.c_void_p(address), ctypes.c_ssize_t(0), 0, None)


def entry(simulation: Simulation) -> Entry:
    assert simulation.module.__file__ is not None
    return Entry(ctypes.CDLL(simulation.module.__file__))


def test_memory_is_counted_and_refused(own_simulation: Simulation) -> None:
    functions = entry(own_simulation)
    address = functions.alloc(5000)
    memory = cuda_memory(0)
    assert (memory.allocated_bytes, memory.reserved_bytes) == (5120, CHUNK_BYTES)
    assert (memory.unplanned_requests, memory.device_mallocs) == (1, 1)
    set_cuda_cap(0, CHUNK_BYTES)
    outcome, refused, error = functions.ask(CHUNK_BYTES)
    assert (outcome, refused) == (1, 0)
    assert "asked 67108864 bytes" in error
    assert "cap 67108864 bytes" in error
    assert (cuda_memory(0).refusals, cuda_memory(0).cap_bytes) == (1, CHUNK_BYTES)
    functions.free(address)
    assert cuda_memory(0).allocated_peak_bytes == 5120
    reset_cuda_peak(0)
    assert (cuda_memory(0).allocated_peak_bytes, cuda_memory(0).frees) == (0, 1)
    release_cuda_memory(0)
    assert (cuda_memory(0).reserved_bytes, cuda_memory(0).device_frees) == (0, 1)
    with pytest.raises(InvalidDeviceArgument, match="must be a positive whole number"):
        set_cuda_cap(0, 0)
    with pytest.raises(InvalidDeviceArgument, match="no CUDA device -1"):
        cuda_memory(-1)


def test_a_step_is_served_by_its_layout(own_simulation: Simulation) -> None:
    functions, module = entry(own_simulation), own_simulation.module
    outside = module.StepLayout.OUTSIDE
    requests = np.array([[1024, 1024], [1024, 0], [4096, outside], [2048, 0]], np.uint64)
    layout = module.StepLayout(requests, np.array([[PLACE, 0]], np.uint64), 512)
    assert (len(layout), layout.peak_bytes) == (4, 2048)
    assert module.begin_step(0, layout, 0)
    module.mark(0, PLACE)
    first, second, outside = (functions.alloc(n) for n in (1024, 1000, 4096))
    assert first - second == 1024
    for address in (first, second, outside):
        functions.free(address)
    assert functions.alloc(2048) == second
    functions.free(second)
    counts = module.end_step(0)
    assert (counts.planned, counts.outside, counts.departed, counts.first) == (3, 1, 0, None)
    assert module.end_step(0) is None
    assert (cuda_memory(0).planned_requests, cuda_memory(0).unplanned_requests) == (3, 1)


def test_torch_is_given_the_three_functions(
    own_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    class Pluggable:
        def __init__(self, *where: str) -> None:
            given.extend(where)

        def allocator(self) -> "Pluggable":
            return self

        def set_record_stream_fn(self, address: int) -> None:
            given.append(address)

    monkeypatch.setattr(torch.cuda.memory, "CUDAPluggableAllocator", Pluggable)
    monkeypatch.setattr(torch.cuda.memory, "change_current_allocator", given.append)
    monkeypatch.setattr("memo_train.device._cuda_memory._installed", False)  # and put back
    install_cuda_allocator()
    assert allocator_installed()
    path, alloc, free, record_stream, installed = given
    hook, module = ctypes.CDLL(path), ctypes.CDLL(own_simulation.module.__file__)
    assert hasattr(hook, alloc)
    assert hasattr(hook, free)
    expected = ctypes.cast(module.memo_cuda_record_stream, ctypes.c_void_p).value
    assert record_stream == expected
    assert isinstance(installed, Pluggable)


def test_a_refusal_is_torch_out_of_memory(compiler: Compiler) -> None:
    """In a process of its own, whose CPU tensors lie where a GPU's would."""
    run_script(HERE / "refused_tensors.py", str(compiler.extension()))
