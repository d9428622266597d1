"""Trains in one process or on several ranks, in several ways, and writes the losses of each.

usage: train_on_ranks.py OUT_DIR KIND..., KIND one of ddp, accelerate, deepspeed, sp, sft, fsdp

One after the other in the same processes; OUT_DIR/KIND.json gets the losses.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

import memo_train
from memo_train.errors import UnsupportedModel
from memo_train.profiling import AHEAD_VARIABLE
from tests.trainer.tiny import VOCAB_SIZE, arguments, tiny_llama, tiny_tokenizer

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
    trainer = trainer_of(out, sp, **options)
    trainer.train()
    return losses_of(trainer)


def trainer_of(
    out: Path, sp: int = 1, *, on_cpus: bool = False, **options: Any
) -> memo_train.Trainer:
    """on_cpus: leave Accelerate to know that these are CPUs."""
    args = arguments_of(TrainingArguments, out, sp, **options)
    return memo_train.Trainer(
        model=tiny_llama(),
        args=on_accelerators(args) if args.fsdp and not on_cpus else args,
        train_dataset=rows(),
        # As many labels in each row: evaluation takes means of batches.
        eval_dataset=[row | {"labels": row["input_ids"]} for row in rows()[:4]],
        memo=replace(MEMO, sp=sp),
    )


def arguments_of(kind: type[Any], out: Path, sp: int, **options: Any) -> Any:
    num_rows = 2 * sp // int(os.environ.get("WORLD_SIZE", "1"))
    sizes = {f"per_device_{of}_batch_size": num_rows for of in ("train", "eval")}
    options = {"train_sampling_strategy": "sequential", "max_steps": NUM_STEPS} | sizes | options
    return arguments(kind, out, **options)


def on_accelerators(args: Any) -> Any:
    """Accelerate shards on GPUs and the like only; let it take gloo's CPUs for such.

    While FSDP2 brings parameters in and out nothing can be measured, so all is at wrap.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ.pop(AHEAD_VARIABLE, None)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
    return args


def losses_of(trainer: Any) -> list[float]:
    """Of all steps, and of evaluation."""
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return [*losses, trainer.evaluate()["eval_loss"]]


def by_fsdp(out: Path) -> list[float]:
    """Sharded by Accelerate; then resumed from the middle, with the same losses to the bit."""
    options = {"fsdp": True, "save_strategy": "steps", "save_steps": 3}
    trainer = trainer_of(out, **options)
    trainer.train()
    assert all(isinstance(p, DTensor) for p in trainer.model.parameters())
    found = losses_of(trainer)
    dist.barrier()
    again = trainer_of(out, **options)
    again.train(str(out / "checkpoint-3"))
    assert losses_of(again) == found
    trainer.save_model()
    with pytest.raises(UnsupportedModel, match="cpu_offload"):
        trainer_of(out, fsdp=True, fsdp_config={"cpu_offload": True})
    return found


def by_ddp(out: Path) -> list[float]:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        with pytest.raises(UnsupportedModel, match="Accelerate shards on GPUs only"):
            trainer_of(out, fsdp=True, on_cpus=True)
    return by_trainer(out)


def by_sft(out: Path, sp: int = 1, **options: Any) -> list[float]:
    """TRL's trainer on rows of unlike lengths; then the tokens it counted."""
    import trl

    import memo_train.trl

    options |= {"bf16": False, "max_length": None}
    args = arguments_of(trl.SFTConfig, out, sp, **options)
    data = Dataset.from_list([{"input_ids": r["input_ids"][i:]} for i, r in enumerate(rows())])
    trainer = memo_train.trl.SFTTrainer(
        model=tiny_llama(),
        args=on_accelerators(args) if args.fsdp else args,
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=tiny_tokenizer(),
        memo=replace(MEMO, sp=sp),
    )
    trainer.train()
    tokens = [row["num_tokens"] for row in trainer.state.log_history if "num_tokens" in row]
    return [*losses_of(trainer), *tokens]


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


def by_deepspeed(out: Path) -> list[float]:
    import deepspeed

    # Built at the first use, in a minute; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    zero = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
    names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return by_trainer(out, deepspeed=zero | dict.fromkeys(names, "auto"))


KINDS: dict[str, Callable[[Path], list[float]]] = {
    "ddp": by_ddp,
    "accelerate": lambda _: by_accelerate(),
    "deepspeed": by_deepspeed,
    "sp": lambda out: by_trainer(out, sp=2),
    # Each group of ranks divides by its own labels.
    "sp, each its own": lambda out: by_trainer(out, sp=2, average_tokens_across_devices=False),
    "sft": by_sft,
    "sft, sp": lambda out: by_sft(out, sp=2),
    "sft, sp, padding-free": lambda out: by_sft(out, sp=2, padding_free=True),
    "sft, sp, fsdp": lambda out: by_sft(out, sp=2, fsdp=True),
    "fsdp": by_fsdp,
}


def main() -> None:
    out, kinds = Path(sys.argv[1]), sys.argv[2:]
    warnings.simplefilter("ignore")
    for kind in kinds:
        losses = KINDS[kind](out / kind)
        if os.environ.get("RANK", "0") == "0":
            (out / f"{kind}.json").write_text(json.dumps(losses))
    sys.stdout.flush()
    # DeepSpeed's threads may abort at exit.
    os._exit(0)


if __name__ == "__main__":
    main()
