"""Copies: bytes arrive unchanged (numerics level 1), in order, counted, and never too early."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memo_train.device import CpuDevice, InvalidDeviceArgument, Rows

KIB, MIB = 1 << 10, 1 << 20
SLOW = 5e6  # bytes/s: 1 MiB takes 210 ms


def random_bytes(nbytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


@pytest.mark.parametrize("nbytes", [1, 63, 4096, 3 * MIB + 5])
@pytest.mark.parametrize("limit", [None, 200e6])
def test_round_trip_is_bitwise(device: CpuDevice, view, nbytes: int, limit) -> None:
    device.set_bandwidth(limit, limit)
    source, target = device.device_alloc(nbytes), device.device_alloc(nbytes)
    host = device.host_alloc(nbytes)
    view(source, nbytes)[:] = random_bytes(nbytes)
    view(target, nbytes)[:] = 0
    device.copy_to_host(host, source, nbytes).wait()
    device.copy_to_device(target, host, nbytes).wait()
    assert np.array_equal(view(target, nbytes), random_bytes(nbytes))


@settings(
    max_examples=150,
    deadline=None,
    # `view` has no state that one example could leave to the next.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.integers(1, 9),
    row_bytes=st.integers(1, 300),
    device_gap=st.integers(0, 50),
    host_gap=st.integers(0, 50),
    seed=st.none() | st.integers(0, 1000),
)
def test_rows_arrive_and_gaps_stay(view, rows, row_bytes, device_gap, host_gap, seed) -> None:
    device = CpuDevice(reserve_bytes=MIB)
    device.adversary(seed)
    shape = Rows(
        rows=rows,
        row_bytes=row_bytes,
        device_pitch_bytes=row_bytes + device_gap,
        host_pitch_bytes=row_bytes + host_gap,
    )
    nbytes = rows * (row_bytes + 50)
    source, target = device.device_alloc(nbytes), device.device_alloc(nbytes)
    host = device.host_alloc(nbytes)
    memory = {address: view(address, nbytes) for address in (source, target, host)}
    memory[source][:] = random_bytes(nbytes)
    memory[host][:] = memory[target][:] = 0
    device.copy_rows_to_host(host, source, shape).wait()
    device.copy_rows_to_device(target, host, shape).wait()
    sent, returned = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    for row in range(rows):
        there, here = row * shape.host_pitch_bytes, row * shape.device_pitch_bytes
        sent[there : there + row_bytes] = memory[source][here : here + row_bytes]
        returned[here : here + row_bytes] = memory[source][here : here + row_bytes]
    assert np.array_equal(memory[host], sent)
    assert np.array_equal(memory[target], returned)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_copies_that_are_asked_for_together(device: CpuDevice, view, seed) -> None:
    """Levels 1 and 2: every one arrives before the event is done, and every one is counted."""
    device.adversary(seed)
    sizes = (4096, 1, 70_000)
    places = (0, 4096, 8192)
    sources = [device.device_alloc(nbytes) for nbytes in sizes]
    targets = [device.device_alloc(nbytes) for nbytes in sizes]
    host = device.host_alloc(8192 + sizes[-1])
    for source, nbytes in zip(sources, sizes, strict=True):
        view(source, nbytes)[:] = random_bytes(nbytes, seed=nbytes)
    hosts = [host + place for place in places]
    sent = device.copy_all_to_host(list(zip(hosts, sources, sizes, strict=True)))
    # In the order of the calls on one host range, without a wait between them.
    device.copy_all_to_device(list(zip(targets, hosts, sizes, strict=True))).wait()
    assert sent.done()
    for target, nbytes in zip(targets, sizes, strict=True):
        assert np.array_equal(view(target, nbytes), random_bytes(nbytes, seed=nbytes))
    counters = device.counters()
    assert (counters.d2h_copies, counters.h2d_copies) == (3, 3)
    assert counters.d2h_bytes == counters.h2d_bytes == sum(sizes)


def test_of_copies_that_are_asked_for_together_one_is_wrong(device: CpuDevice) -> None:
    block, host = device.device_alloc(8192), device.host_alloc(8192)
    good = (host, block, 4096)
    elsewhere = (host + 4096, host, 4096)
    outside = (host + 4096, block, 8192)
    for copies in ([], [good, elsewhere], [good, outside], [good, (host, block, 0)]):
        with pytest.raises(InvalidDeviceArgument):
            device.copy_all_to_host(copies)
    assert device.counters().d2h_copies == 0, "none was started"
    device.host_free(host)


def test_event_is_not_done_before_the_bytes_have_moved(device: CpuDevice, view) -> None:
    device.set_bandwidth(SLOW, None)
    source, host = device.device_alloc(MIB), device.host_alloc(MIB)
    view(source, MIB)[:] = 5
    event = device.copy_to_host(host, source, MIB)
    assert not event.done()
    assert view(host, MIB)[-1] == 0
    event.wait()
    assert event.done()
    assert (view(host, MIB) == 5).all()


def test_copies_of_one_stream_finish_in_order(device: CpuDevice) -> None:
    device.set_bandwidth(SLOW, None)
    source, host = device.device_alloc(MIB), device.host_alloc(MIB)
    events = [device.copy_to_host(host, source, 200 * KIB) for _ in range(5)]
    events[2].wait()
    assert [event.done() for event in events[:3]] == [True] * 3
    assert not events[4].done()
    device.synchronize()
    assert all(event.done() for event in events)


def test_way_back_waits_for_the_way_out_of_the_same_host_range(device: CpuDevice, view) -> None:
    device.set_bandwidth(SLOW, None)
    source, target = device.device_alloc(MIB), device.device_alloc(MIB)
    host = device.host_alloc(MIB)
    view(source, MIB)[:] = random_bytes(MIB)
    device.copy_to_host(host, source, MIB)
    device.copy_to_device(target, host, MIB).wait()
    assert np.array_equal(view(target, MIB), random_bytes(MIB))


def test_way_out_does_not_overwrite_what_still_leaves_the_host_range(device, view) -> None:
    device.set_bandwidth(None, SLOW)
    first, second = device.device_alloc(MIB), device.device_alloc(MIB)
    target, host = device.device_alloc(MIB), device.host_alloc(MIB)
    view(host, MIB)[:] = 1
    view(second, MIB)[:] = 2
    back = device.copy_to_device(target, host, MIB)
    device.copy_to_host(host, second, MIB).wait()
    assert back.done()
    assert (view(target, MIB) == 1).all()
    device.device_free(first)


def test_other_host_ranges_do_not_wait(device: CpuDevice) -> None:
    device.set_bandwidth(SLOW, None)
    block = device.device_alloc(2 * MIB)
    busy, free = device.host_alloc(MIB), device.host_alloc(MIB)
    slow = device.copy_to_host(busy, block, MIB)
    device.copy_to_device(block + MIB, free, MIB).wait()
    assert not slow.done()


def test_host_range_is_not_freed_under_a_copy(device: CpuDevice) -> None:
    device.set_bandwidth(SLOW, SLOW)
    block, host = device.device_alloc(MIB), device.host_alloc(MIB)
    sent = device.copy_to_host(host, block, MIB)
    with pytest.raises(InvalidDeviceArgument, match="while a copy into it is not done"):
        device.host_free(host)
    sent.wait()
    returned = device.copy_to_device(block, host, MIB)
    with pytest.raises(InvalidDeviceArgument, match="while a copy out of it is not done"):
        device.host_free(host)
    returned.wait()
    device.host_free(host)
    assert device.counters().host_used_bytes == 0


def test_bytes_outside_live_memory_are_refused(device: CpuDevice) -> None:
    block, host = device.device_alloc(KIB), device.host_alloc(KIB)
    for start, address, nbytes in (
        (device.copy_to_host, (host, block + KIB - 8), 16),
        (device.copy_to_host, (host, host), KIB),
        (device.copy_to_host, (block, block), KIB),
        (device.copy_to_host, (host + KIB - 8, block), 16),
        (device.copy_to_device, (block, host - 1), 2),
        (device.copy_to_device, (block, host), KIB + 1),
    ):
        with pytest.raises(InvalidDeviceArgument, match="do not lie in one"):
            start(*address, nbytes)
    wide = Rows(rows=2, row_bytes=8, device_pitch_bytes=KIB, host_pitch_bytes=8)
    with pytest.raises(InvalidDeviceArgument, match="do not lie in one live allocation"):
        device.copy_rows_to_host(host, block, wide)
    huge = Rows(rows=1 << 40, row_bytes=8, device_pitch_bytes=1 << 40, host_pitch_bytes=8)
    with pytest.raises(InvalidDeviceArgument, match="address space"):
        device.copy_rows_to_host(host, block, huge)
    device.device_free(block)
    with pytest.raises(InvalidDeviceArgument, match="do not lie in one live allocation"):
        device.copy_to_host(host, block, KIB)
    counters = device.counters()
    assert (counters.d2h_copies, counters.h2d_copies) == (0, 0)


def test_counters_count_what_was_asked_for(device: CpuDevice) -> None:
    block, host = device.device_alloc(MIB), device.host_alloc(MIB)
    rows = Rows(rows=4, row_bytes=100, device_pitch_bytes=500, host_pitch_bytes=100)
    for _ in range(3):
        device.copy_to_host(host, block, 1000)
    device.copy_rows_to_device(block, host, rows)
    device.synchronize()
    counters = device.counters()
    assert (counters.d2h_copies, counters.d2h_bytes) == (3, 3000)
    assert (counters.h2d_copies, counters.h2d_bytes) == (1, 400)
    assert counters.d2h_busy_s > 0
    assert counters.stalls == 0
    device.reset_counters()
    counters = device.counters()
    assert (counters.d2h_copies, counters.h2d_bytes, counters.d2h_busy_s) == (0, 0, 0)
    assert counters.host_used_bytes == MIB


def test_device_is_destroyed_with_work_pending(device: CpuDevice) -> None:
    small = CpuDevice(reserve_bytes=4 * MIB)
    small.set_bandwidth(1.0, 1.0)
    small.adversary(3)
    block, host = small.device_alloc(MIB), small.host_alloc(MIB)
    event = None
    for _ in range(40):
        small.copy_to_host(host, block, MIB)
        event = small.copy_to_device(block, host, MIB)
    assert event is not None
    del small
    assert not event.done()
    start = time.perf_counter()
    del event
    assert time.perf_counter() - start < 30  # with its copies carried out: 12 days
