"""Tensors beyond a GPU's memory, asked for by the functions that torch is given.

python refused_tensors.py EXTENSION: torch's CPU tensors come from the simulated GPU's allocator by
way of the two functions that `install_cuda_allocator` hands to torch. Before, a refusal was a null
pointer that the first kernel wrote to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from memo_train.device._cpu import install_hook
from memo_train.device._cuda_memory import (
    cuda_failure,
    cuda_memory,
    install_cuda_allocator,
    set_cuda_cap,
)
from tests.cuda.conftest import use_simulation
from tests.cuda.simulated import Simulation

CAP_BYTES = 256 << 20
TOO_MANY_BYTES = CAP_BYTES + (1 << 20)


class Pluggable:
    """torch's class where torch was built without CUDA: keeps what it is given."""

    given: tuple[str, ...] = ()

    def __init__(self, *given: str) -> None:
        Pluggable.given = given

    def allocator(self) -> Any:
        return self

    def set_record_stream_fn(self, address: int) -> None:
        assert address


def refuse_and_go_on(nbytes: int) -> None:
    used = cuda_memory(0).allocated_bytes
    with pytest.raises(torch.OutOfMemoryError, match=f"asked {nbytes} bytes .*cap {CAP_BYTES}"):
        torch.empty(nbytes, dtype=torch.uint8)
    assert cuda_memory(0).allocated_bytes == used
    assert int(torch.ones(1000).sum()) == 1000


def refuse_in_backward() -> None:
    """autograd's engine carries the error out of its graph, and a smaller step runs after it."""
    weight = torch.ones(CAP_BYTES // 4 // 3, requires_grad=True)
    loss = (weight * 2).sum()
    with pytest.raises(torch.OutOfMemoryError, match="device memory exceeded"):
        loss.backward()
    small = torch.ones(10, requires_grad=True)
    (small * 2).sum().backward()
    assert small.grad is not None
    assert small.grad.tolist() == [2.0] * 10


def main() -> None:
    simulation = Simulation(Path(sys.argv[1]))
    simulation.start(0)
    with pytest.MonkeyPatch.context() as patch:
        use_simulation(patch, simulation)
        patch.setattr(torch.cuda.memory, "CUDAPluggableAllocator", Pluggable)
        patch.setattr(torch.cuda.memory, "change_current_allocator", lambda allocator: None)
        install_cuda_allocator()
        install_hook(*simulation.pluggable_entry(*Pluggable.given))
        set_cuda_cap(0, CAP_BYTES)
        for _ in range(3):
            refuse_and_go_on(TOO_MANY_BYTES)
        refuse_in_backward()
        assert cuda_failure() == ""
    print("refused", flush=True)


main()
