"""Trains a small Llama at three lengths and prints what was planned and what was taken.

usage: python varying_peaks.py ALPHA BATCH
"""

from __future__ import annotations

import gc
import json
import random
import sys

import torch

import memo_train
from memo_train.model import Llama, LlamaConfig


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    alpha, batch = float(sys.argv[1]), int(sys.argv[2])
    sizes = {"hidden_size": 64, "ffn_size": 160, "num_heads": 4, "num_kv_heads": 2}
    model = Llama(LlamaConfig(vocab_size=61, num_blocks=3, **sizes))
    optimizer = torch.optim.AdamW(model.parameters())
    memo_train.wrap(model, alpha=alpha, tile_tokens=64)
    for tokens in random.Random(3).sample(range(200, 2600), 3):
        for _ in range(2):
            gc.collect()
            memo_train.reset_stats()
            ids = torch.randint(61, (batch, tokens))
            model(ids, ids).loss.backward()
            stats = memo_train.stats()
            optimizer.step()
            optimizer.zero_grad()
        found = memo_train.plan(model).prediction
        row = {
            "tokens": tokens,
            "device_peak_bytes": stats.device_peak_bytes,
            "predicted_device_bytes": found.device_peak_bytes,
            "host_peak_bytes": stats.host_peak_bytes,
            "predicted_host_bytes": found.host_peak_bytes,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
