"""One step of a wrapped model whose head FSDP2 shards: gradients of every parameter are plain's.

torchrun --nproc-per-node 2 tests/runtime/sharded_head.py alone|grouped
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import memo_train
from tests.runtime.causal_lms import MODELS


def shard(model: Any, how: str) -> nn.Module:
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(model.lm_head if how == "alone" else [model.model.norm, model.lm_head])
    sharded: nn.Module = fully_shard(model)
    return sharded


def gradients(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    for _ in range(2):  # the second step finds what the first one left behind
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
    return {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}


def main(how: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ids = torch.randint(1, 61, (1, 37), generator=torch.Generator().manual_seed(dist.get_rank()))
    for dtype in (torch.float32, torch.float16):
        plain = gradients(shard(MODELS["llama_gqa"]().to(dtype), how), ids)
        wrapped = memo_train.wrap(
            MODELS["llama_gqa"]().to(dtype), alpha=0.5, tile_tokens=8, seq_len=37
        )
        found = gradients(shard(wrapped, how), ids)
        assert found.keys() == plain.keys() == {n for n, _ in wrapped.named_parameters()}
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        for name, gradient in plain.items():
            difference = float((found[name] - gradient).norm() / gradient.norm())
            assert difference < tolerance, f"{dtype} {name}: {difference:.2g}"
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
