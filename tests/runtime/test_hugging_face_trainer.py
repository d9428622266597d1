"""A wrapped model in Transformers' own Trainer: the losses of plain training, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import memo_train
from memo_train.testing import assert_same_losses
from tests.runtime.causal_lms import MODELS, VOCAB_SIZE

TEXT = [{"input_ids": (torch.arange(37) + i) % VOCAB_SIZE} for i in range(32)]
DATA = [{**row, "labels": row["input_ids"]} for row in TEXT]


def losses(model: nn.Module, directory: Path, **options: Any) -> list[float]:
    """Four training losses and one of evaluation."""
    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=2,
        max_steps=4,
        logging_steps=1,
        learning_rate=3e-3,
        report_to=[],
        use_cpu=True,
        seed=3,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=DATA, eval_dataset=DATA[:6])
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    return [row["loss"] for row in trainer.state.log_history if "loss" in row] + [evaluated]


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 3}, {"bf16": True}, {"max_grad_norm": 0.1}],
    ids=str,
)
def test_losses_are_those_of_plain_training(options: dict[str, Any], tmp_path: Path) -> None:
    plain = losses(MODELS["llama_gqa"](), tmp_path, **options)
    model = memo_train.wrap(MODELS["llama_gqa"](), alpha=0.5, tile_tokens=8)
    dtype = torch.bfloat16 if options.get("bf16") else torch.float32
    assert len(plain) == 5
    assert_same_losses(losses(model, tmp_path, **options), plain, dtype=dtype)
    assert not torch.is_autocast_enabled("cpu")
