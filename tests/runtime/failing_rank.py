"""Two ranks of which one fails in mid-step: it raises, stays alive, or is killed.

torchrun --nproc-per-node 2 tests/runtime/failing_rank.py raises|lingers|dies forward|backward
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

import memo_train
from tests.runtime.causal_lms import MODELS

LINGERS_S = 300
"""Longer than any test waits."""


@record
def main(how: str, where: str) -> None:
    torch.set_num_threads(1)
    # As long as torch's own: a test that passes did not wait for it.
    dist.init_process_group("gloo", timeout=timedelta(minutes=30))
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    model = memo_train.wrap(MODELS["llama_gqa"](), mesh=mesh, alpha=0.5, tile_tokens=8)
    ids = torch.arange(64)[None] % 61
    part = memo_train.shard_batch({"input_ids": ids, "labels": ids}, mesh)
    model(**part).loss.backward()
    if dist.get_rank() == 1:
        fail(model, how, where)
    try:
        model(**part).loss.backward()
    except ValueError:
        if how != "lingers":
            raise
        time.sleep(LINGERS_S)


def fail(model: Any, how: str, where: str) -> None:
    """Make the last block's tiles fail: attention's exchange has to be done without this rank."""
    norm = model.model.layers[-1].input_layernorm
    own = norm.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = own(x)
        if where == "forward":
            end(how)
        elif y.requires_grad:
            y.register_hook(lambda _: end(how))
        return y

    norm.forward = forward


def end(how: str) -> None:
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("out of luck on purpose")


if __name__ == "__main__":
    main(*sys.argv[1:])
