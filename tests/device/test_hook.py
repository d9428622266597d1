"""Torch on the arena, in fresh processes: placement, refusal and recovery, threads, training."""

START = """
import torch
from memo_train.device import get_cpu_device
device = get_cpu_device()
MIB = 1 << 20
"""

TRAIN = """
def losses(steps, dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(50, 64), torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0),
        torch.nn.Linear(64, 50),
    ).to(dtype)
    seen = []
    for step in range(steps):
        tokens = torch.arange(step, step + 64).reshape(16, 4) % 50
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        for parameter in model.parameters():  # torch.optim would import its compiler: seconds
            parameter.data.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None
        seen.append(loss.item())
    return seen
"""


def test_tensors_of_all_kinds_lie_in_the_arena_and_empty_ones_take_nothing(run_python) -> None:
    run_python(
        START
        + """
assert get_cpu_device() is device
before = device.counters().device_used_bytes
x = torch.randn(1000)
assert device.owns(x.data_ptr()) and x.data_ptr() % 64 == 0
assert device.counters().device_used_bytes - before == 4032
derived = [x.clone(), x.double(), x.numpy().copy() is not None and x * 2, torch.zeros(3, 5),
           torch.empty(0).resize_(100), torch.arange(5), x.to(torch.bfloat16)]
assert all(device.owns(t.data_ptr()) for t in derived)
assert device.core.arena.is_live(x.data_ptr(), 4000)
pointer = x.data_ptr()
del x, derived
assert not device.core.arena.is_live(pointer, 1)
assert device.counters().device_used_bytes == before

before = device.counters().device_live_allocations
empty = [torch.empty(0), torch.zeros(3, 0), torch.empty(0, dtype=torch.bfloat16).clone()]
empty.append(torch.cat(empty[:1] * 2))
assert all(t.data_ptr() == 0 for t in empty)
assert device.counters().device_live_allocations == before
del empty
"""
    )


def test_tensors_from_before_the_hook_are_freed_as_before(run_python) -> None:
    run_python(
        """
import torch
old = torch.randn(100_000)
expected = old.sum()
from memo_train.device import get_cpu_device
device = get_cpu_device()
assert not device.owns(old.data_ptr())
assert old.sum() == expected
del old
"""
    )


def test_over_the_cap_is_torch_out_of_memory_and_work_goes_on(run_python) -> None:
    run_python(
        START
        + """
kept = torch.ones(10 * MIB // 4)
device.set_device_cap(64 * MIB)
used = device.counters().device_used_bytes
for _ in range(3):
    try:
        torch.empty(60 * MIB, dtype=torch.uint8)
        raise SystemExit("no error over the cap")
    except torch.OutOfMemoryError as refused:
        message = str(refused)
assert f"asked {60 * MIB} bytes (60.0 MiB)" in message, message
assert f"used {used} bytes" in message, message
assert f"cap {64 * MIB} bytes (64.0 MiB)" in message, message
assert device.counters().device_used_bytes == used
assert torch.empty(50 * MIB, dtype=torch.uint8).zero_().max() == 0
assert (kept == 1).all()
device.set_device_cap(None)
torch.empty(60 * MIB, dtype=torch.uint8)
"""
    )


def test_training_goes_on_after_running_out_in_mid_step(run_python) -> None:
    run_python(
        START
        + """
def step(weight, width):
    y = torch.nn.functional.gelu(torch.ones(width, 256) @ weight)
    y = (y * y.exp()).tanh()
    stage.append("backward")
    y.sum().backward()
    grad, weight.grad = weight.grad, None
    return grad

def peak(action):
    device.reset_peak()
    action()
    return device.counters().device_high_water_bytes

stage = []
weight = torch.randn(256, 256, requires_grad=True)
expected = step(weight, 64)
with torch.no_grad():
    forward = peak(lambda: torch.nn.functional.gelu(torch.ones(4096, 256) @ weight))
whole = peak(lambda: step(weight, 4096))
live = device.counters().device_used_bytes
for cap, reached in ((forward - MIB, []), (whole - MIB, ["backward"])) * 3:
    stage.clear()
    device.set_device_cap(cap)
    try:
        step(weight, 4096)
        raise SystemExit("no error over the cap")
    except torch.OutOfMemoryError:
        weight.grad = None
    assert stage == reached
    assert device.counters().device_used_bytes == live
    assert torch.equal(step(weight, 64), expected)
"""
    )


def test_training_is_bitwise_the_same_as_without_the_arena(run_python) -> None:
    show = "print(losses(6, torch.float32), losses(6, torch.bfloat16))"
    plain = run_python("import torch\n" + TRAIN + show)
    arena = run_python(START + "device.set_device_cap(64 * MIB)\n" + TRAIN + show)
    poisoned = run_python(START + "device.poison(True)\n" + TRAIN + show)
    assert plain == arena == poisoned
    assert "nan" not in plain


def test_bfloat16_linear_and_matmul_with_two_threads(run_python) -> None:
    run_python(
        START
        + """
torch.set_num_threads(2)
linear = torch.nn.Linear(384, 640, dtype=torch.bfloat16)
x = torch.randn(300, 384, dtype=torch.bfloat16, requires_grad=True)
for _ in range(5):
    y = linear(x)
    y.float().pow(2).mean().backward()
reference = torch.nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double())
assert (y.double() - reference).abs().max() < 0.05
"""
    )


def test_threads_allocate_and_free_each_others_tensors(run_python) -> None:
    run_python(
        START
        + """
import queue, threading
live = device.counters().device_live_allocations
channel, wrong = queue.Queue(50), []

def make(value):
    for index in range(300):
        channel.put(torch.full((100 + 37 * index,), float(value)))
    channel.put(None)

def drop():
    finished = 0
    while finished < 2:
        tensor = channel.get()
        finished += tensor is None
        if tensor is not None and (tensor != tensor[0]).any():
            wrong.append(tensor[0].item())

threads = [threading.Thread(target=make, args=(1,)), threading.Thread(target=make, args=(2,)),
           threading.Thread(target=drop)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not wrong
assert device.counters().device_live_allocations == live
"""
    )


def test_interpreter_ends_cleanly_with_live_tensors_and_copies(run_python) -> None:
    run_python(
        START
        + """
import builtins
builtins.kept = [torch.randn(1000) for _ in range(100)]
device.set_bandwidth(1e6, 1e6)
host = device.host_alloc(MIB)
big = torch.randn(MIB // 4)
event = device.copy_to_host(host, big.data_ptr(), MIB)
assert not event.done()
"""
    )


def test_memory_of_a_device_kept_forever_outlives_the_object(run_python) -> None:
    run_python(
        """
import ctypes, gc
from memo_train.device import CpuDevice
own = CpuDevice(reserve_bytes=1 << 20)
block = own.device_alloc(64)
own.core.keep_forever()
del own
gc.collect()
ctypes.memset(block, 1, 64)
"""
    )


def test_tensor_survives_the_host_under_the_adversary(run_python) -> None:
    run_python(
        START
        + """
device.poison(True)
device.adversary(7)
for step in range(20):
    source = torch.randn(50_000)
    expected = source.tolist()
    host = device.host_alloc(source.nbytes)
    device.copy_to_host(host, source.data_ptr(), source.nbytes).wait()
    del source
    target = torch.empty(50_000)
    device.copy_to_device(target.data_ptr(), host, target.nbytes).wait()
    device.host_free(host)
    assert target.tolist() == expected
"""
    )
