"""What the arena records of itself."""

import threading

import numpy as np
import torch

from memo_train import _core
from memo_train.device import EventKind, get_cpu_device


def test_events_are_recorded_in_order_between_start_and_stop() -> None:
    arena = _core.Arena(1 << 20)
    before = arena.alloc(64)
    arena.mark(1)
    arena.start_recording()
    first = arena.alloc(100)
    arena.mark(1 << 40)
    arena.free(before)
    arena.free(first)
    events = arena.stop_recording()
    arena.free(arena.alloc(64))
    assert [(e["kind"], e["offset"], e["bytes"]) for e in events] == [
        (EventKind.ALLOC, first - before, 128),
        (EventKind.MARK, 1 << 40, 0),
        (EventKind.FREE, 0, 64),
        (EventKind.FREE, first - before, 128),
    ]
    assert len(arena.stop_recording()) == 0


def test_threads_are_told_apart() -> None:
    arena = _core.Arena(1 << 20)
    arena.start_recording()
    arena.mark(0)
    for _ in range(2):
        other = threading.Thread(target=lambda: arena.free(arena.alloc(64)))
        other.start()
        other.join()
    arena.mark(0)
    threads = arena.stop_recording()["source"]
    assert threads[0] == threads[-1] == 0
    assert 0 not in threads[1:-1]


def test_torch_tensors_are_recorded_with_their_bytes() -> None:
    device = get_cpu_device()
    device.start_recording()
    tensor = torch.ones(1000)
    offset = tensor.data_ptr()
    del tensor
    events = device.stop_recording()
    sizes = events["bytes"]
    assert sizes.tolist() == [4032, 4032]
    assert np.unique(events["offset"]).size == 1
    assert offset % 64 == 0
