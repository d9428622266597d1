"""`CudaDevice` in Python: on the simulated runtime, and on a machine that has no GPU."""

import mmap
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from memo_train.device import (
    CudaDevice,
    CudaUnavailable,
    InvalidDeviceArgument,
    Rows,
    get_cuda_device,
    load_cuda,
)
from memo_train.device._cuda_memory import MemoMemory
from memo_train.device.errors import HostMemoryExceeded
from tests.cuda.simulated import Simulation
from tests.device.conftest import view  # noqa: F401

PAGE = mmap.PAGESIZE
NBYTES = 3000
SIMULATED_BYTES = 1 << 30


@pytest.fixture
def device(on_simulation: Simulation) -> Iterator[CudaDevice]:
    """Device 0, destroyed after the test; kernels are this thread's work."""
    stream = on_simulation.host_stream()
    made = CudaDevice(0, current_stream=lambda: stream, memory=MemoMemory(0, lambda: stream))
    yield made
    vars(made).clear()


def test_bytes_come_back(device: CudaDevice, view) -> None:  # noqa: F811
    first, second = device.device_alloc(NBYTES), device.device_alloc(NBYTES)
    view(first, NBYTES)[:] = np.arange(NBYTES) % 251
    host = device.host_alloc(NBYTES)
    device.copy_to_host(host, first, NBYTES).wait()
    back = device.copy_to_device(second, host, NBYTES)
    back.wait()
    assert back.done()
    assert np.array_equal(view(second, NBYTES), view(first, NBYTES))
    device.host_free(host)
    for address in (first, second):
        device.device_free(address)
    counters = device.counters()
    assert (counters.d2h_copies, counters.h2d_bytes) == (1, NBYTES)
    assert (counters.device_used_bytes, counters.device_peak_bytes) == (0, 2 * NBYTES)
    assert (counters.host_used_bytes, counters.host_cached_bytes) == (0, PAGE)


def test_rows_come_back(device: CudaDevice, view) -> None:  # noqa: F811
    rows = Rows(rows=5, row_bytes=100, device_pitch_bytes=600, host_pitch_bytes=100)
    wide, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
    memory = view(wide, NBYTES).reshape(5, 600)
    memory[:] = np.arange(600) % 199
    device.copy_rows_to_host(host, wide, rows).wait()
    memory[:] = 0
    device.copy_rows_to_device(wide, host, rows).wait()
    assert (memory[:, :100] == np.arange(100)).all()
    assert (memory[:, 100:] == 0).all()
    device.host_free(host)
    device.device_free(wide)


def test_stream_is_asked_for_at_every_use(on_simulation: Simulation) -> None:
    stream, asked = on_simulation.host_stream(), []

    def current() -> int:
        asked.append(stream)
        return stream

    device = CudaDevice(0, current_stream=current)
    block, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
    assert not asked
    for round_ in range(3):
        device.copy_to_host(host, block, NBYTES)
        assert len(asked) == round_ + 1
    device.synchronize()
    device.device_free(block)


def test_error_of_the_stream_lookup_reaches_the_caller(on_simulation: Simulation) -> None:
    def current() -> int:
        raise LookupError("no stream today")

    device = CudaDevice(0, current_stream=current)
    block, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
    with pytest.raises(LookupError, match="no stream today"):
        device.copy_to_host(host, block, NBYTES)
    device.device_free(block)


def test_what_is_reserved_is_pinned_once_for_ranges_of_any_sizes(
    on_simulation: Simulation, device: CudaDevice
) -> None:
    device.reserve_host(0)
    assert device.counters().host_cached_bytes == 0
    device.reserve_host(8 * PAGE)
    assert on_simulation.num_pins() == 1
    assert device.counters().host_cached_bytes >= 8 * PAGE
    for pages in ((8,), (1, 7), (2, 3, 3)):
        ranges = [device.host_alloc(n * PAGE) for n in pages]
        for host in ranges:
            device.host_free(host)
        device.reserve_host(sum(pages) * PAGE)
    assert on_simulation.num_pins() == 1


def test_no_more_is_pinned_than_the_cap_allows(device: CudaDevice) -> None:
    device.set_host_cap(4 * PAGE)
    device.reserve_host(100 * PAGE)
    counters = device.counters()
    assert (counters.host_used_bytes, counters.host_cached_bytes) == (0, 4 * PAGE)
    with pytest.raises(HostMemoryExceeded, match=f"asked {5 * PAGE} bytes"):
        device.host_alloc(5 * PAGE)


def test_a_machine_that_pins_no_more_refuses_before_the_step(device: CudaDevice) -> None:
    with pytest.raises(HostMemoryExceeded, match="the system refuses to map or pin it"):
        device.reserve_host(SIMULATED_BYTES)


def test_who_serves_the_tensors_is_seen_at_every_use(
    on_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = CudaDevice(0, current_stream=lambda: 0)
    assert "torch's own allocator serves this GPU" in device.why_no_layouts
    monkeypatch.setattr("memo_train.device._cuda.allocator_installed", lambda: True)
    assert device.why_no_layouts == ""
    assert device.counters().device_used_bytes == 0


def test_nine_tenths_of_a_gpu_are_planned_with(device: CudaDevice) -> None:
    assert device.default_limit_bytes == SIMULATED_BYTES * 9 // 10


def test_two_devices_keep_their_memory_apart(on_simulation: Simulation) -> None:
    devices = [CudaDevice(i, current_stream=lambda: 0) for i in range(2)]
    blocks = [device.device_alloc(NBYTES) for device in devices]
    assert [[d.owns(b) for b in blocks] for d in devices] == [[True, False], [False, True]]
    host = devices[0].host_alloc(NBYTES)
    with pytest.raises(InvalidDeviceArgument, match="not memory of CUDA device 0"):
        devices[0].copy_to_host(host, blocks[1], NBYTES)
    for device, block in zip(devices, blocks, strict=True):
        device.device_free(block)


def test_wrong_arguments_are_refused(device: CudaDevice) -> None:
    for size in (0, -1, 1 << 63):
        with pytest.raises(InvalidDeviceArgument):
            device.host_alloc(size)
    with pytest.raises(InvalidDeviceArgument, match="freed before"):
        device.host_free(4096)
    with pytest.raises(InvalidDeviceArgument, match="no CUDA device 2"):
        CudaDevice(2, current_stream=lambda: 0)


def test_build_without_cuda_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memo_train._cuda", None)
    monkeypatch.delattr("memo_train._cuda", raising=False)
    with pytest.raises(CudaUnavailable, match="MEMO_BUILD_CUDA=1"):
        load_cuda()


def test_machine_without_gpu(toolkit) -> None:
    module = load_cuda()  # a checkout set up beside a toolkit has it
    assert toolkit.version == module.CUDA_VERSION
    if module.device_count() > 0:
        pytest.skip("this machine has a GPU: python -m memo_train.selftest")
    for make in (CudaDevice, get_cuda_device):
        with pytest.raises(CudaUnavailable, match=r"sees no GPU; .*CUDA_VISIBLE_DEVICES"):
            make(0)
