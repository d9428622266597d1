"""A training run that a test kills and starts again; it resumes where it was.

Writes a line for each step that is done to OUT_DIR/losses.txt: step and loss, all digits.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from memo_train import MemoConfig, Trainer
from tests.trainer.tiny import VOCAB_SIZE, arguments, tiny_llama

SAVED_EVERY = 3


class Losses(TrainerCallback):
    """Writes each log line's loss at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            with self._path.open("a") as file:
                file.write(f"{state.global_step} {logs['loss']!r} {logs['grad_norm']!r}\n")


def main(out: Path, num_steps: int, cache: Path) -> None:
    """A process of its own runs this; cache: where it keeps profiles."""
    out.mkdir(parents=True, exist_ok=True)
    log = os.open(out.parent / f"{out.name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ["MEMO_TRAIN_CACHE"] = str(cache)
    torch.set_num_threads(1)
    rows = []
    for i in range(40):
        # Lengths vary, so that plans of several buckets are made, before and after a resume.
        ids = [(i + 5 * n) % VOCAB_SIZE for n in range(40 + 7 * (i % 6))]
        rows.append({"input_ids": ids, "labels": ids})
    options = {"max_steps": num_steps, "save_strategy": "steps", "save_steps": SAVED_EVERY}
    options |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    # Noise on the embeddings: random numbers go on where they were.
    options |= {"neftune_noise_alpha": 5.0, "logging_nan_inf_filter": False}
    warnings.simplefilter("ignore")
    trainer = Trainer(
        model=tiny_llama(),
        args=arguments(TrainingArguments, out, **options),
        train_dataset=rows,
        callbacks=[Losses(out / "losses.txt")],
        memo=MemoConfig(device_gib=0.05),
    )
    trainer.train(resume_from_checkpoint=any(out.glob("checkpoint-*")) or None)
