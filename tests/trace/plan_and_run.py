"""Plans steps of a small Llama, runs them under the plan's own limit, and prints what happened.

A process of its own: the arena then holds nothing but the model. Prints one JSON object per case.
"""

from __future__ import annotations

import gc
import json
from typing import Any

import torch
from torch import nn

import memo_train
from memo_planner import PlanInfeasible
from memo_train.device import get_cpu_device
from memo_train.model import Llama, LlamaConfig

GIB = 2**30
STEPS = 2
CASES: dict[str, dict[str, Any]] = {
    "recompute": {"alpha": 0.0, "tile_tokens": 128},
    "half": {"alpha": 0.5, "tile_tokens": 128},
    "swap": {"alpha": 1.0, "tile_tokens": 128},
    "short_last_tile": {"alpha": 0.5, "tile_tokens": 100},
    "planned": {},
}


def make_model() -> nn.Module:
    torch.manual_seed(1)
    sizes = {"hidden_size": 128, "ffn_size": 384, "num_heads": 4, "num_kv_heads": 2}
    return Llama(LlamaConfig(vocab_size=256, num_blocks=4, **sizes))


def run(tokens: int, device_gib: float, **options: Any) -> dict[str, Any]:
    """Plan for this limit and train two steps under it: the second has the moments."""
    gc.collect()
    device = get_cpu_device()
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(256, (1, tokens))
    memo_train.wrap(model, seq_len=tokens, device_gib=device_gib, **options)
    for _ in range(STEPS):
        gc.collect()
        memo_train.reset_stats()
        loss = model(ids, ids).loss
        in_forward = memo_train.stats()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    plan, stats = memo_train.plan(model), memo_train.stats()
    blocks = plan.policy.blocks
    high_water = device.counters().device_high_water_bytes
    del loss
    memo_train.unwrap(model)
    return {
        "tokens": tokens,
        "limit_bytes": plan.limits.device_bytes,
        "predicted_device_bytes": plan.prediction.device_peak_bytes,
        "room_bytes": plan.prediction.device_room_bytes,
        "device_peak_bytes": stats.device_peak_bytes,
        "high_water_bytes": high_water,
        "predicted_host_bytes": plan.prediction.host_peak_bytes,
        "host_peak_bytes": stats.host_peak_bytes,
        "host_bytes_in_forward": in_forward.host_used_bytes,
        "host_bytes_after": stats.host_used_bytes,
        "d2h_bytes": stats.d2h_bytes,
        "h2d_bytes": stats.h2d_bytes,
        "d2h_copies": stats.d2h_copies,
        "tiles": [stats.keep_tiles, stats.swap_tiles, stats.recompute_tiles],
        "planned_tiles": [
            sum(b.keep_tiles for b in blocks),
            sum(b.swap_tiles for b in blocks),
            sum(b.recompute_tiles for b in blocks),
        ],
        "num_tiles": plan.policy.num_tiles,
        "num_groups": plan.policy.num_groups,
    }


def longest(device_gib: float, **options: Any) -> int:
    """What the refusal of a sequence that is far too long says does fit."""
    try:
        memo_train.wrap(make_model(), seq_len=1 << 20, device_gib=device_gib, **options)
    except PlanInfeasible as refusal:
        return refusal.max_tokens
    raise AssertionError(f"2**20 tokens fit {device_gib} GiB")


def tight(tokens: int, **options: Any) -> dict[str, Any]:
    """Plan with room to spare, then run in no more than the room that plan asks for."""
    model = memo_train.wrap(make_model(), seq_len=tokens, device_gib=1.0, **options)
    room = memo_train.plan(model).prediction.device_room_bytes
    memo_train.unwrap(model)
    del model
    return run(tokens, room / GIB * (1 + 1e-9), **options)


def main() -> None:
    torch.set_num_threads(1)
    for name, options in CASES.items():
        print(json.dumps({"case": name, **tight(1024, **options)}), flush=True)
    for name, options in (("longest", {}), ("longest_of_small_tiles", {"tile_tokens": 64})):
        tokens = longest(0.03, **options)
        gc.collect()
        print(json.dumps({"case": name, **run(tokens, 0.03, **options)}), flush=True)


if __name__ == "__main__":
    main()
