"""Bad input to the device: a clear error of the project's tree, and nothing has changed."""

import math

import numpy as np
import pytest

from memo_planner.errors import MemoError
from memo_train.device import CpuDevice, InvalidDeviceArgument, Rows
from memo_train.device.errors import DeviceMemoryExceeded, HostMemoryExceeded

BAD_SIZES = [0, -1, 1.5, "8", None, True, 1 << 63]


@pytest.mark.parametrize("size", BAD_SIZES)
@pytest.mark.parametrize("method", ["host_alloc", "device_alloc", "host_free", "device_free"])
def test_sizes_and_addresses(device: CpuDevice, method: str, size) -> None:
    before = device.counters()
    with pytest.raises(InvalidDeviceArgument, match="must be a positive whole number") as error:
        getattr(device, method)(size)
    assert repr(size) in str(error.value)
    assert device.counters() == before


@pytest.mark.parametrize("cap", [cap for cap in BAD_SIZES if cap is not None])
@pytest.mark.parametrize("method", ["set_device_cap", "set_host_cap"])
def test_caps(device: CpuDevice, method: str, cap) -> None:
    getattr(device, method)(1 << 20)
    before = device.counters()
    with pytest.raises(InvalidDeviceArgument, match="None means no cap"):
        getattr(device, method)(cap)
    assert device.counters() == before
    getattr(device, method)(None)


@pytest.mark.parametrize("speed", [0, -1.0, math.inf, math.nan, "fast"])
def test_bandwidths(device: CpuDevice, speed) -> None:
    for pair in ((speed, None), (None, speed)):
        with pytest.raises(
            InvalidDeviceArgument, match=r"finite and positive.*None means no limit"
        ):
            device.set_bandwidth(*pair)


def test_a_bad_bandwidth_leaves_both_limits(device: CpuDevice) -> None:
    device.set_bandwidth(1e6, None)
    for set_bandwidth in (device.set_bandwidth, device.core.set_bandwidth):
        with pytest.raises(InvalidDeviceArgument):
            set_bandwidth(None, -1.0)
    block, host = device.device_alloc(1 << 16), device.host_alloc(1 << 16)
    device.copy_to_host(host, block, 1 << 16).wait()
    assert device.counters().d2h_busy_s > 0.03


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_copies(device: CpuDevice, value) -> None:
    block, host = device.device_alloc(64), device.host_alloc(64)
    for arguments in ((value, block, 8), (host, value, 8), (host, block, value)):
        with pytest.raises(InvalidDeviceArgument):
            device.copy_to_host(*arguments)
        with pytest.raises(InvalidDeviceArgument):
            device.copy_to_device(*arguments)
    assert device.counters().d2h_copies == 0


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rows": 0}, "rows must be"),
        ({"row_bytes": -8}, "row_bytes must be"),
        ({"device_pitch_bytes": 7}, "overlap at a pitch of 7"),
        ({"host_pitch_bytes": 7}, "overlap at a pitch of 8 .* 7"),
    ],
)
def test_rows(change: dict[str, int], why: str) -> None:
    shape = {"rows": 2, "row_bytes": 8, "device_pitch_bytes": 8, "host_pitch_bytes": 8}
    Rows(**shape)
    with pytest.raises(InvalidDeviceArgument, match=why):
        Rows(**{**shape, **change})


def test_numpy_integers_are_welcome(device: CpuDevice) -> None:
    device.host_free(device.host_alloc(np.int64(4096)))


def test_every_error_is_in_the_tree(device: CpuDevice) -> None:
    device.set_device_cap(64)
    device.set_host_cap(4096)
    for call, kind in (
        (lambda: device.device_alloc(65), DeviceMemoryExceeded),
        (lambda: device.host_alloc(4097), HostMemoryExceeded),
        (lambda: device.host_free(4096), InvalidDeviceArgument),
    ):
        with pytest.raises(kind) as error:
            call()
        assert isinstance(error.value, MemoError)
        assert (kind is InvalidDeviceArgument) == isinstance(error.value, ValueError)


def test_ownership(device: CpuDevice) -> None:
    block, host = device.device_alloc(64), device.host_alloc(64)
    assert device.owns(block + 63)
    assert not device.owns(host)
    assert not device.owns(0)
    assert not device.owns(-1)
