"""The adversary: right programs stay right, a missing wait or an early free becomes NaN."""

import threading
import time

import numpy as np
import pytest

from memo_train.device import CpuDevice, InvalidDeviceArgument

SEEDS = range(12)
NUM = 1 << 14
NBYTES = 4 * NUM


@pytest.fixture
def hostile(view):
    """`hostile(seed)`: a device in test mode, and its memory as float32 arrays."""

    def make(seed: int):
        device = CpuDevice(reserve_bytes=1 << 26)
        device.poison(True)
        device.adversary(seed)
        return device, lambda address: view(address, NBYTES).view(np.float32)

    return make


def swap(device: CpuDevice, floats, *, leave: bool, arrive: bool) -> np.ndarray:
    """Sends NUM ones to the host and back; waits before the free and the read unless told not to.

    Returns what compute reads from the device.
    """
    source, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
    floats(source)[:] = 1
    sent = device.copy_to_host(host, source, NBYTES)
    if leave:
        sent.wait()
    device.device_free(source)
    target = device.device_alloc(NBYTES)
    returned = device.copy_to_device(target, host, NBYTES)
    if arrive:
        returned.wait()
    seen = floats(target).copy()
    device.synchronize()
    device.host_free(host)
    device.device_free(target)
    return seen


@pytest.mark.parametrize("seed", SEEDS)
def test_program_with_its_waits_is_right(hostile, seed: int) -> None:
    device, floats = hostile(seed)
    for _ in range(20):
        assert (swap(device, floats, leave=True, arrive=True) == 1).all(), f"seed {seed}"
    assert device.counters().device_used_bytes == 0


@pytest.mark.parametrize(("leave", "arrive"), [(True, False), (False, True)])
def test_missing_wait_shows_as_nan(hostile, leave: bool, arrive: bool) -> None:
    caught = 0
    for seed in SEEDS:
        device, floats = hostile(seed)
        seen = [swap(device, floats, leave=leave, arrive=arrive) for _ in range(4)]
        caught += any(np.isnan(values).any() for values in seen)
    assert caught == len(SEEDS)


def count_early(seed: int) -> tuple[int, int]:
    """How many of 30 copies in each direction ran although nobody waited for them."""
    device = CpuDevice(reserve_bytes=1 << 26)
    device.adversary(seed)
    block, hosts = device.device_alloc(64), [device.host_alloc(64) for _ in range(2)]
    out = [device.copy_to_host(hosts[0], block, 64) for _ in range(30)]
    back = [device.copy_to_device(block, hosts[1], 64) for _ in range(30)]
    # Those that are not held take some 20 ms together; what is held runs after 1 s at the soonest.
    time.sleep(0.3)
    return sum(event.done() for event in out), sum(event.done() for event in back)


def test_choices_follow_from_the_seed() -> None:
    seen = {seed: count_early(seed) for seed in range(6)}
    assert {seed: count_early(seed) for seed in range(6)} == seen
    assert len(set(seen.values())) > 2
    assert any(out != back for out, back in seen.values())


def test_held_copy_runs_when_a_later_one_is_waited_for(hostile) -> None:
    device, _ = hostile(0)
    block, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
    start = time.perf_counter()
    events = [device.copy_to_host(host, block, 64) for _ in range(50)]
    events[-1].wait()
    assert all(event.done() for event in events)
    assert time.perf_counter() - start < 5  # held one after another: some 40 s


def test_held_copy_runs_in_the_end_although_nobody_waits(hostile) -> None:
    device, _ = hostile(1)  # which holds the first copy for 1.2 s
    block, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
    event = device.copy_to_host(host, block, NBYTES)
    start = time.perf_counter()
    while not event.done():
        assert time.perf_counter() - start < 60  # held for at most 2 s
        time.sleep(0.01)


def test_later_bytes_can_arrive_before_earlier_ones(view) -> None:
    nbytes, backwards = 1 << 18, 0
    for seed in range(6):
        device = CpuDevice(reserve_bytes=1 << 26)
        device.set_bandwidth(10e6, None)
        device.adversary(seed)
        block, host = device.device_alloc(nbytes), device.host_alloc(nbytes)
        view(block, nbytes)[:] = 1
        memory = view(host, nbytes)
        event = device.copy_to_host(host, block, nbytes)
        waiter = threading.Thread(target=event.wait)
        waiter.start()
        out_of_order = False
        while not event.done():
            arrived = np.flatnonzero(np.diff(memory.astype(np.int8)) > 0)
            out_of_order |= arrived.size > 0
            time.sleep(0.001)
        waiter.join()
        backwards += out_of_order
    assert backwards >= 4


@pytest.mark.parametrize("seed", range(6))
def test_switching_it_off_frees_held_copies(hostile, seed: int) -> None:
    device, _ = hostile(seed)
    block, host = device.device_alloc(NBYTES), device.host_alloc(NBYTES)
    events = [device.copy_to_host(host, block, 64) for _ in range(50)]
    time.sleep(0.03)  # the worker takes the first one up, and holds it
    device.adversary(None)
    start = time.perf_counter()
    while not events[-1].done():
        assert time.perf_counter() - start < 0.9  # some ms; the first alone is held for 1 s
        time.sleep(0.001)


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5])
def test_seed_out_of_range_is_refused(device: CpuDevice, seed) -> None:
    with pytest.raises(InvalidDeviceArgument, match="seed"):
        device.adversary(seed)
