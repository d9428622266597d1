"""A plain loop of your own around a wrapped model: nothing of it is memo-train's but two lines.

usage: python examples/3_run.py, which prints

    step  1: loss 5.5..., ... MiB on the device, ... MiB on the host, ... copies
    step  2: loss ...
    step  3: loss ...
    step  4: loss ...
    device memory: ... in use, peak ..., highest end ...
    ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import memo_train
from examples.small import small_llama
from examples.text import text_batches

TOKENS, STEPS = 4096, 4
MIB = 2**20


def main() -> None:
    """Train four steps under a cap of 64 MiB."""
    model = memo_train.wrap(small_llama(), seq_len=TOKENS, device_gib=64 / 1024, alpha=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step, ids in enumerate(text_batches(STEPS, rows=1, tokens=TOKENS), start=1):
        memo_train.reset_stats()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        stats = memo_train.stats()
        print(
            f"step {step:2}: loss {loss.item():.4f}, {stats.device_peak_bytes / MIB:.1f} MiB on "
            f"the device, {stats.host_peak_bytes / MIB:.1f} MiB on the host, {stats.d2h_copies} "
            "copies"
        )
    print(memo_train.memory_report(model))


if __name__ == "__main__":
    main()
