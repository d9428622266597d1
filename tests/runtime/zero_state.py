"""Steps of a wrapped model under DeepSpeed's ZeRO, each against one process without it.

torchrun --nproc-per-node 2 tests/runtime/zero_state.py OUT.json [case ...]
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

import memo_train
from memo_train.testing import assert_same_losses
from tests.runtime.model_state import TILE_TOKENS, batch_of, make, mine, run_cases, used_bytes, wrap
from tests.runtime.policies import force

_LEARNING_RATE = 1e-2


def engine_of(model: Any, stage: int, *, leaves: bool = True, offload: bool = False) -> Any:
    if stage == 3 and leaves:
        deepspeed.utils.set_z3_leaf_modules(model, [type(model.model.layers[0])])
    zero = {
        "stage": stage,
        # Else so small parameters stay whole, and some are brought in ahead.
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_reuse_distance": 0,
    }
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero | ({"offload_optimizer": {"device": "cpu"}} if offload else {}),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def batches(num_steps: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    few = [batch_of(torch.randint(1, 61, (2, 37), generator=generator)) for _ in range(4)]
    return [few[step % 4] for step in range(num_steps)]


def plain_losses(num_steps: int) -> list[float]:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    found = []
    for batch in batches(num_steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        found.append(float(loss))
    return found


def losses(stage: int, policy: str | None = None, num_steps: int = 20, **options: Any) -> None:
    """Level 6: every step's loss is one process's."""
    model = wrap(make())
    if policy is not None:
        force(model, policy, TILE_TOKENS)
    engine, found = engine_of(model, stage, **options), []
    for batch in batches(num_steps):
        loss = engine(**mine(batch)).loss
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        found.append(float(mean) / dist.get_world_size())
    assert_same_losses(found, plain_losses(num_steps))
    assert found[-1] < found[0]


def bytes_between() -> None:
    """Between forward and backward no gathered weights of blocks are held, whatever was saved."""
    weights_bytes = sum(4 * p.numel() for p in make().model.layers.parameters())
    off = {}
    for policy in ("keep", "swap", "recompute"):
        held = []
        for stage in (1, 3):
            model = force(wrap(make()), policy, TILE_TOKENS, free_bytes=0)
            memo_train.use_layouts(model, False)
            engine = engine_of(model, stage)
            for batch in batches(2):
                engine.backward(engine(**mine(batch)).loss)
                engine.step()
            before = used_bytes()
            loss = engine(**mine(batch_of())).loss
            held.append(used_bytes() - before)
            engine.backward(loss)
            engine.step()
            del loss, engine, model
        off[policy] = (held[1] - held[0]) / weights_bytes
    assert all(part < 0.1 for part in off.values()), off


def wrapped_after() -> None:
    model = make()
    wrap(engine_of(model, 3).module)


CASES: dict[str, Callable[[], None]] = {
    "stage 1": partial(losses, 1),
    "stage 2": partial(losses, 2),
    "stage 2, offloaded optimiser": partial(losses, 2, offload=True),
    "stage 3": partial(losses, 3),
    "stage 3, keep": partial(losses, 3, "keep", 6),
    "stage 3, swap": partial(losses, 3, "swap", 6),
    "stage 3, recompute": partial(losses, 3, "recompute", 6),
    "stage 3, bytes": bytes_between,
    "stage 3 without leaves": partial(losses, 3, leaves=False),
    "stage 3, wrapped after": wrapped_after,
}


if __name__ == "__main__":
    # Building that operation takes a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    gc.collect()
    gc.freeze()
    deepspeed.init_distributed("gloo", timeout=timedelta(seconds=60))
    run_cases(CASES, Path(sys.argv[1]), sys.argv[2:])
