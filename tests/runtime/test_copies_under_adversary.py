"""Copies delayed, reordered and torn, freed memory poisoned: gradients keep every bit.

Numerics level 1. The last tests take single waits out and see that this would show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from memo_train import memory_report, use_layouts
from memo_train.device import CpuDevice
from memo_train.testing import Step, assert_same_bits, run_step
from tests.runtime.causal_lms import gpt2_with_dropout, own_llama
from tests.runtime.policies import force

SEEDS = range(30)
NO_ROOM, SOME_ROOM, MUCH_ROOM = 0, 40_000, 1 << 40


def step_of(model, ids: torch.Tensor) -> Step:
    return run_step(model, input_ids=ids, labels=ids)


@pytest.mark.parametrize("free_bytes", [NO_ROOM, SOME_ROOM, MUCH_ROOM])
@pytest.mark.parametrize("policy", ["swap", "mixed"])
def test_thirty_seeds(policy: str, free_bytes: int, ids, wrapped, device) -> None:
    model = wrapped(own_llama(), "keep")
    keep = step_of(model, ids)
    force(model, policy, 8, free_bytes)
    device.poison(True)
    for seed in SEEDS:
        use_layouts(model, seed % 3 > 0)  # steps by size, and after the first of them planned ones
        device.adversary(seed)
        try:
            assert_same_bits(step_of(model, ids), keep)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    planned = memory_report(model).shapes[-1]
    assert planned.num_steps > 5
    assert (planned.unplanned, planned.missing) == (0, 0)


@pytest.mark.parametrize("policy", ["swap", "mixed"])
def test_dropout_and_accumulation(policy: str, ids, wrapped, device) -> None:
    model = wrapped(gpt2_with_dropout(), "keep")

    def two_steps() -> Step:
        first = step_of(model, ids)
        loss = model(input_ids=ids[:, :20], labels=ids[:, :20]).loss
        other = model(input_ids=ids[:1], labels=ids[:1]).loss
        (other + loss).backward()
        parameters = model.named_parameters()
        return Step(loss=first.loss, gradients={n: p.grad.clone() for n, p in parameters})

    keep = two_steps()
    force(model, policy, 8, SOME_ROOM)
    device.poison(True)
    for seed in SEEDS:
        device.adversary(seed)
        assert_same_bits(two_steps(), keep)


class _NeverWaited:
    """An event whose wait is forgotten."""

    def wait(self) -> None:
        return

    def done(self) -> bool:
        return True


@pytest.fixture
def forget_waits(monkeypatch, device) -> Iterator[Callable[[str], None]]:
    """`forget_waits(copy)`: nobody waits any more for the copies that method starts.

    The device itself refuses to free a host range that is being copied, which would show the
    missing wait as well; to see it in the numbers, host ranges are freed when the test is over.
    """
    freed: list[int] = []
    host_free = CpuDevice.host_free

    def forget(copy: str) -> None:
        start = getattr(CpuDevice, copy)

        def start_and_forget(self: CpuDevice, *args: object) -> _NeverWaited:
            start(self, *args)
            return _NeverWaited()

        monkeypatch.setattr(CpuDevice, copy, start_and_forget)
        monkeypatch.setattr(CpuDevice, "host_free", lambda self, address: freed.append(address))

    yield forget
    device.synchronize()
    for address in freed:
        host_free(device, address)


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("copy", ["copy_all_to_host", "copy_all_to_device"])
def test_a_missing_wait_would_show(copy, planned, ids, wrapped, device, forget_waits) -> None:
    model = wrapped(own_llama(), "keep")
    keep = step_of(model, ids)
    force(model, "swap", 8, MUCH_ROOM)
    use_layouts(model, planned)
    if planned:
        for _ in range(2):  # another way than the first step's is recorded when it comes again
            step_of(model, ids)
        memory_report(model)
    device.poison(True)
    device.adversary(1)
    forget_waits(copy)
    broken = step_of(model, ids)
    device.synchronize()
    with pytest.raises(AssertionError, match="gradients differ"):
        assert_same_bits(broken, keep)
