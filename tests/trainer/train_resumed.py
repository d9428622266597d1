"""A training script that a test kills and starts again; it resumes where it was.

usage: train_resumed.py OUT_DIR [STEPS]

Writes a line for each step that is done to OUT_DIR/losses.txt: step and loss, all digits.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

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


def main() -> None:
    out, num_steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 14
    out.mkdir(parents=True, exist_ok=True)
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
    print("done")


if __name__ == "__main__":
    main()
