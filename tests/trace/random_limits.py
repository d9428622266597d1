"""Trains random small models under random limits and prints what happened to each.

usage: python random_limits.py FIRST_SEED NUM_SEEDS

A process of its own: the arena then holds nothing but the model. Prints one JSON object a seed.
Four seeds in a row are four limits of one model, which is made and wrapped anew for each.
"""

from __future__ import annotations

import gc
import json
import random
import sys

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import memo_train
from memo_planner import PlanInfeasible
from memo_train.device import get_cpu_device
from memo_train.trace._profile import state_bytes

GIB = 2**30
_LIMITS_OF_MODEL = 4  # wrapping measures a profile, most of a seed's time, once for these


def make_model(draw: random.Random) -> nn.Module:
    heads = draw.choice([2, 4])
    sizes = {
        "vocab_size": draw.choice([61, 500]),
        "hidden_size": 16 * heads * draw.choice([1, 2]),
        "intermediate_size": draw.choice([48, 200]),
        "num_hidden_layers": draw.randint(1, 5),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, heads]),
        "attn_implementation": draw.choice(["sdpa", "sdpa", "eager"]),
        "pad_token_id": 0,
    }
    if draw.random() < 0.25:
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
        return MixtralForCausalLM(MixtralConfig(**sizes, **experts, sliding_window=None))
    return LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=4096))


def run(seed: int) -> dict[str, object]:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model, device = make_model(random.Random(-1 - seed // _LIMITS_OF_MODEL)), get_cpu_device()
    state, tokens = state_bytes(model), draw.choice([50, 300, 700, 1500])
    room = draw.uniform(10, 150) * tokens * model.config.hidden_size * 4
    tile_tokens = draw.choice([None, None, 64, 100])
    batch = draw.choice([1, 1, 3])
    found: dict[str, object] = {"seed": seed, "outcome": "held", "tokens": tokens, "batch": batch}
    try:
        memo_train.wrap(model, device_gib=(state + room) / GIB, tile_tokens=tile_tokens)
    except PlanInfeasible:
        return found | {"outcome": "refused by wrap"}
    optimizer = torch.optim.AdamW(model.parameters())
    try:
        for length in (tokens, tokens - draw.randint(0, 20), tokens):
            ids = torch.randint(1, 61, (batch, length))
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            memo_train.memory_report(model)
    except PlanInfeasible:
        found["outcome"] = "refused"
    except torch.OutOfMemoryError as error:
        plan = memo_train.plan(model)
        planned = f"planned {plan.prediction.device_peak_bytes} of {plan.limits.device_bytes}"
        found |= {"outcome": "out of memory", "error": f"{planned}: {error}"}
    memo_train.unwrap(model)
    device.set_device_cap(None)
    return found


def main() -> None:
    torch.set_num_threads(1)
    first, count = map(int, sys.argv[1:])
    for seed in range(first, first + count):
        print(json.dumps(run(seed)), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
