"""A training script as a user would write it; the tests start it alone and under torchrun.

usage: train_small_llama.py OUT_DIR
"""

import sys
from pathlib import Path

import torch

import memo_train
from memo_train.model import Llama, LlamaConfig
from memo_train.trainer import Trainer, TrainerConfig

NUM_STEPS = 5
ROWS = 3
TOKENS = 40


def small_llama() -> Llama:
    """Two blocks, the same weights in every process."""
    torch.manual_seed(11)
    sizes = {"vocab_size": 61, "hidden_size": 32, "ffn_size": 48, "num_blocks": 2}
    return Llama(LlamaConfig(**sizes, num_heads=4, num_kv_heads=2))


def batches(num_batches: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens; rows differ in how many labels count, so ranks hold unequal shares."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for index in range(num_batches):
        ids = torch.randint(0, 61, (ROWS, TOKENS), generator=generator)
        labels = ids.clone()
        labels[0, : 10 + index] = -100
        labels[2, :30] = -100
        made.append({"input_ids": ids, "labels": labels})
    return made


def main() -> None:
    model = memo_train.wrap(small_llama(), alpha=0.5, tile_tokens=16)
    config = TrainerConfig(
        num_steps=NUM_STEPS,
        learning_rate=1e-2,
        accumulation_steps=2,
        max_grad_norm=0.5,
        out_dir=Path(sys.argv[1]),
        progress=False,
    )
    Trainer(model, batches(2 * NUM_STEPS), config).train()


if __name__ == "__main__":
    main()
