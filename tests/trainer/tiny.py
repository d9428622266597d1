"""A small Llama, its tokenizer and arguments of trainers, all made here: nothing is fetched."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

# TRL counts its users unless it is told that nothing is on the net.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 64
NUM_STEPS = 10
WORDS = [f"w{n}" for n in range(3, VOCAB_SIZE)]

_ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": NUM_STEPS,
    "logging_steps": 1,
    "learning_rate": 3e-3,
    "report_to": [],
    "use_cpu": True,
    "seed": 3,
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def tiny_llama(**options: Any) -> Any:
    """Two blocks, the same numbers every time."""
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(_config(**options)).train()


def tiny_scorer() -> Any:
    """The same with a reward in the head's place."""
    torch.manual_seed(1)
    return transformers.LlamaForSequenceClassification(_config(num_labels=1)).train()


def _config(**options: Any) -> Any:
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    return transformers.LlamaConfig(**(sizes | options))


def tiny_tokenizer() -> Any:
    """A word each for w3 to w63."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {w: n for n, w in enumerate(WORDS, start=3)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def text(num_words: int, start: int) -> str:
    """The next words of a fixed order, each with a blank before it."""
    return "".join(f" {WORDS[(start + 7 * n) % len(WORDS)]}" for n in range(num_words))


def arguments(kind: type[Any], directory: Path, **options: Any) -> Any:
    """Arguments of a trainer: ten steps of two rows, each logged, nothing saved."""
    with warnings.catch_warnings():
        # TRL's configurations have the old name of checkpointing on.
        warnings.simplefilter("ignore", FutureWarning)
        return kind(output_dir=str(directory), **(_ARGUMENTS | options))


def losses(trainer: Any) -> list[float]:
    """Those of all steps."""
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
