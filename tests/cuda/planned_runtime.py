"""Steps of the runtime at planned addresses of the CUDA allocator, on a simulated machine.

python planned_runtime.py EXTENSION SEED: prints one JSON object for each policy. The tensors of
this process lie in the memory of the simulated GPU, from the first on, and cannot go elsewhere.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import memo_train
from memo_train.device import EventKind, Events
from memo_train.device._cpu import install_hook
from memo_train.device._cuda_memory import MemoMemory
from memo_train.testing import Step, assert_same_bits, run_step
from tests.cuda.conftest import use_simulation
from tests.cuda.simulated import CpuTensorsOnCuda, Simulation
from tests.runtime.policies import force
from tests.runtime.small_llama import VOCAB_SIZE, own_llama

NUM_STEPS = 12
CUDA_MALLOC_ALIGNMENT = 256
TILE_TOKENS = 16


def device_on(simulation: Simulation, seed: int) -> CpuTensorsOnCuda:
    """The CUDA device, with this process's CPU tensors at the CUDA allocator's addresses."""
    simulation.start(seed)
    stream, alloc, free = simulation.tensor_entry()
    install_hook(stream, alloc, free)
    device = CpuTensorsOnCuda(simulation)
    device.use(MemoMemory(0, lambda: stream), stream)
    return device


def step_of(model: nn.Module) -> Step:
    ids = torch.randint(1, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(3))
    return run_step(model, input_ids=ids, labels=ids)


def events_of_a_step(device: CpuTensorsOnCuda, model: nn.Module) -> Events:
    device.start_recording()
    step_of(model)
    return device.stop_recording()


def run(device: CpuTensorsOnCuda, policy: str) -> dict[str, Any]:
    """Steps under `policy`: the first one is recorded, the others are served by its layout."""
    model = memo_train.wrap(own_llama(), alpha=0.5)
    memo_train.use_layouts(model, False)
    keep = step_of(force(model, "keep", TILE_TOKENS))
    force(model, policy, TILE_TOKENS)
    memo_train.use_layouts(model, True)
    for _ in range(NUM_STEPS):
        assert_same_bits(step_of(model), keep)
        memo_train.memory_report(model)  # waits for the layout
    (report,) = memo_train.memory_report(model).shapes
    events = events_of_a_step(device, model)
    made = events[events["kind"] == EventKind.ALLOC]
    memo_train.unwrap(model)
    return {
        "policy": policy,
        "state": report.state,
        "num_steps": report.num_steps,
        "num_requests": report.num_requests,
        "planned": report.planned,
        "unplanned": report.unplanned,
        "missing": report.missing,
        "peak_above_bound_bytes": report.peak_bytes - report.lower_bound_bytes,
        "address_rest": int((made["offset"] % CUDA_MALLOC_ALIGNMENT).max()),
        "size_rest": int((made["bytes"] % device.alignment_bytes).max()),
        "num_copies": device.counters().d2h_copies,
    }


def main() -> None:
    torch.set_num_threads(1)
    simulation = Simulation(Path(sys.argv[1]))
    with pytest.MonkeyPatch.context() as patch:
        use_simulation(patch, simulation)
        device = device_on(simulation, int(sys.argv[2]))
        patch.setattr(sys.modules["memo_train.wrap"], "device_of", lambda parameters: device)
        for policy in ("swap", "mixed", "recompute"):
            print(json.dumps(run(device, policy)))
            gc.collect()
        # The allocator lives as long as the process, and keeps memory and events.
        found = [line for line in device.finish()[1].splitlines() if not line.startswith("leak: ")]
        print(json.dumps({"found": found}))


main()
