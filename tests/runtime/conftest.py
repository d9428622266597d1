"""The runtime's tests: one thread, no cap left behind, an empty host pool at the end of each."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import memo_train
from memo_train.device import CpuDevice, get_cpu_device
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import force

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def quick_garbage_collection() -> None:
    """Import every model, then let collections pass over the libraries' million objects."""
    for make in MODELS.values():
        make()
    gc.collect()
    gc.freeze()


@pytest.fixture
def device() -> Iterator[CpuDevice]:
    """The process's device, its caps, limits and test modes lifted afterwards."""
    process_device = get_cpu_device()
    yield process_device
    process_device.adversary(None)
    process_device.poison(False)
    process_device.set_bandwidth(None, None)
    process_device.set_device_cap(None)
    process_device.set_host_cap(None)


@pytest.fixture(autouse=True)
def empty_host_pool() -> Iterator[None]:
    """Whatever a test did, nothing stays on the host."""
    yield
    gc.collect()
    assert memo_train.stats().host_used_bytes == 0


@pytest.fixture
def ids() -> torch.Tensor:
    """[2, 37] token ids: more than one sequence, a length that tiles of 8 do not divide."""
    return torch.randint(1, 61, (2, 37), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def wrapped() -> Callable[..., nn.Module]:
    """`wrapped(model, policy, tile_tokens)`: the model, wrapped, following a policy by name."""

    def wrap(model: nn.Module, policy: str = "mixed", tile_tokens: int = 8) -> nn.Module:
        return force(memo_train.wrap(model, alpha=0.5), policy, tile_tokens)

    return wrap
