"""Trains in one process or on several ranks, and writes the losses.

usage: train_on_ranks.py KIND OUT_DIR, KIND one of ddp, accelerate, deepspeed, sp
"""

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

import memo_train
from memo_train.errors import UnsupportedModel
from tests.trainer.tiny import VOCAB_SIZE, arguments, tiny_llama

NUM_STEPS = 5
MEMO = memo_train.MemoConfig(alpha=0.5, tile_tokens=8)


def rows() -> list[dict[str, Any]]:
    """Rows in which unlike numbers of labels count, so that ranks hold unequal shares."""
    made = []
    for i in range(2 * NUM_STEPS):
        ids = [(i + 5 * n) % VOCAB_SIZE for n in range(40)]
        made.append({"input_ids": ids, "labels": [-100] * (3 * i % 17) + ids[3 * i % 17 :]})
    return made


def by_trainer(out: Path, sp: int = 1, **options: Any) -> list[float]:
    """Batches of two rows, in one process or one row on each of two ranks; then evaluation."""
    num_rows = 2 * sp // int(os.environ.get("WORLD_SIZE", "1"))
    sizes = {f"per_device_{of}_batch_size": num_rows for of in ("train", "eval")}
    options |= {"max_steps": NUM_STEPS, **sizes}
    trainer = memo_train.Trainer(
        model=tiny_llama(),
        args=arguments(TrainingArguments, out, train_sampling_strategy="sequential", **options),
        train_dataset=rows(),
        # As many labels in each row: evaluation takes means of batches.
        eval_dataset=[row | {"labels": row["input_ids"]} for row in rows()[:4]],
        memo=replace(MEMO, sp=sp),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return [*losses, trainer.evaluate()["eval_loss"]]


def by_accelerate() -> list[float]:
    """A loop of a user's own with accelerate, whose `prepare` puts DDP around the wrapped model."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = memo_train.wrap(tiny_llama(), alpha=0.5, tile_tokens=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = [{n: torch.tensor(v) for n, v in row.items()} for row in rows()]
    size = 2 // accelerator.num_processes
    loader = torch.utils.data.DataLoader(data, batch_size=size)  # type: ignore[arg-type]
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for batch in loader:
        counted = accelerator.reduce(batch["labels"][:, 1:].ne(-100).sum())
        loss = model(**batch, num_items_in_batch=counted).loss * accelerator.num_processes
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    return losses


def check_fsdp_is_refused(out: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"fully_shard and memo_train\.wrap"):
        by_trainer(out, fsdp="full_shard")


def main() -> None:
    kind, out = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore")
    if kind == "deepspeed":
        import deepspeed

        # Built at the first use, in a minute; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        zero = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
        names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        sizes = dict.fromkeys(names, "auto")
        losses = by_trainer(out, deepspeed=zero | sizes)
    elif kind == "accelerate":
        losses = by_accelerate()
    elif kind == "sp":
        losses = by_trainer(out, sp=2)
    else:
        losses = by_trainer(out)
        if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1:
            check_fsdp_is_refused(out)
    if os.environ.get("RANK", "0") == "0":
        (out / "losses.json").write_text(json.dumps(losses))
    sys.stdout.flush()
    # DeepSpeed's threads may abort at exit.
    os._exit(0)


if __name__ == "__main__":
    main()
