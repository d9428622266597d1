"""A forked child keeps its memory and is refused the threads it does not have."""

FORK = """
import os, torch
from memo_train.device import get_cpu_device
from memo_train.device.errors import ForkedProcess
device = get_cpu_device()

def in_child(action):
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def test_child_is_refused_copies_with_a_clear_error(run_python) -> None:
    output = run_python(
        FORK
        + """
block, host = device.device_alloc(64), device.host_alloc(64)
done = device.copy_to_host(host, block, 64)
done.wait()
device.set_bandwidth(1.0, None)
pending = device.copy_to_host(host, block, 64)
for action in (
    get_cpu_device,
    lambda: device.copy_to_host(host, block, 64),
    lambda: device.host_alloc(64),
    lambda: device.host_free(host),
    pending.wait,
    device.synchronize,
):
    assert in_child(action) == 1
device.set_bandwidth(None, None)
assert in_child(done.wait) == 0
pending.wait()
"""
    )
    lines = output.splitlines()
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("ForkedProcess process ")
        assert "spawn" in line


def test_child_of_a_busy_parent_can_use_tensors(run_python) -> None:
    run_python(
        FORK
        + """
import threading
stop = threading.Event()
def churn():
    while not stop.is_set():
        device.device_free(device.device_alloc(1000))
threads = [threading.Thread(target=churn) for _ in range(2)]
[thread.start() for thread in threads]
kept = torch.arange(1000)
def use():
    assert kept.sum() == 499500
    assert device.owns(torch.ones(1000).data_ptr())
try:
    for _ in range(40):
        assert in_child(use) == 0
finally:
    stop.set()
    [thread.join() for thread in threads]
"""
    )


def test_forked_data_loader_workers(run_python) -> None:
    run_python(
        FORK
        + """
from torch.utils.data import DataLoader
data = [torch.full((4,), float(index)) for index in range(16)]
loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork")
for _ in range(2):
    assert torch.cat(list(loader)).sum() == 4 * sum(range(16))
"""
    )


def test_device_that_only_the_child_drops_does_not_hang(run_python) -> None:
    run_python(
        FORK
        + """
from memo_train.device import CpuDevice
own = CpuDevice(reserve_bytes=1 << 20)
def drop():
    global own
    del own
assert in_child(drop) == 0
"""
    )
