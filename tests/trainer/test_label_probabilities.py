"""Objectives that use log-probabilities of labels: no logits exist whole, by the device's peak.

TRL's trainers take them from hidden states in tiles (its fused head), which stands around the
wrapped model; the decoder under it goes by the plan, and the head by tiles as a loss's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import memo_train
from memo_train.testing import assert_same_losses
from memo_train.trainer._label_tiles import label_tiles
from memo_train.wrap import planner_of
from tests.trainer.tiny import arguments, text, tiny_llama, tiny_tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

import memo_train.trl  # noqa: E402

TOKENS = 2048
WIDE = {"vocab_size": 4096, "max_position_embeddings": TOKENS}
LOGITS_BYTES = TOKENS * WIDE["vocab_size"] * 4


def step(model: Any, *, fused: bool) -> tuple[float, torch.Tensor, int]:
    """A DPO-like loss of one row, a gradient of it, and most device bytes beyond those before."""
    device = planner_of(model).wrapped.device
    ids = torch.arange(TOKENS)[None] * 7 % WIDE["vocab_size"]
    model.zero_grad()
    device.reset_peak()
    before = device.counters().device_used_bytes
    with label_tiles(planner_of(model), 512):
        if fused:
            log_probs = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        else:
            logits = model(input_ids=ids).logits[:, :-1]
            log_probs = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:, None])[..., 0]
            del logits
        loss = -torch.nn.functional.logsigmoid(0.001 * log_probs.sum() + 15)
        loss.backward()
    peak_bytes = device.counters().device_peak_bytes - before
    return float(loss.detach()), model.model.layers[0].mlp.up_proj.weight.grad.clone(), peak_bytes


def test_log_probabilities_of_labels_need_no_logits() -> None:
    """Level 6 for the loss; the gradient's sums are in another order."""
    first, model = (memo_train.wrap(tiny_llama(**WIDE), alpha=0.5, tile_tokens=512) for _ in "ab")
    expected, gradient, whole_bytes = step(first, fused=False)
    from trl.trainer.utils import add_fused_lm_head

    # Around the wrapped model, as memo_train.trl's trainers have it.
    add_fused_lm_head(model)
    found, ours, peak_bytes = step(model, fused=True)
    assert_same_losses([found], [expected])
    torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-7)
    assert whole_bytes > 2 * LOGITS_BYTES, f"{whole_bytes / LOGITS_BYTES:.2f} times the logits"
    assert peak_bytes < LOGITS_BYTES / 2, f"{peak_bytes / LOGITS_BYTES:.2f} times the logits"


def dpo(directory: Path) -> tuple[Any, Any]:
    half = TOKENS // 2 - 8
    rows = [{"prompt": text(4, 1), "chosen": text(half, 2), "rejected": text(half, 5)}]
    kinds = (memo_train.trl.DPOTrainer, trl.DPOConfig)
    trainer = made(*kinds, directory, rows, ref_model=tiny_llama(**WIDE))
    return trainer, next(iter(trainer.get_train_dataloader()))


def completion() -> dict[str, Any]:
    """One of all tokens but four."""
    ids = torch.arange(TOKENS)[None] * 7 % WIDE["vocab_size"]
    parts = {"prompt": ids[:, :4], "completion": ids[:, 4:]}
    found = {f"{name}_ids": part for name, part in parts.items()}
    return found | {f"{name}_mask": torch.ones_like(part) for name, part in parts.items()}


def grpo(directory: Path) -> tuple[Any, Any]:
    rewards = {"reward_funcs": lambda completions, **_: [1.0] * len(completions)}
    options = {"num_generations": 2, "max_completion_length": 8}
    kinds = (memo_train.trl.GRPOTrainer, trl.GRPOConfig)
    trainer = made(*kinds, directory, [{"prompt": text(4, 1)}] * 2, options, **rewards)
    trainer.current_gradient_accumulation_steps = 1  # as in training
    counted = {"advantages": torch.ones(1), "num_items_in_batch": torch.tensor(TOKENS - 4)}
    return trainer, completion() | counted


def distillation(directory: Path) -> tuple[Any, Any]:
    teacher = {"teacher_model": tiny_llama(**WIDE | {"num_key_value_heads": 4})}
    kinds = (memo_train.trl.DistillationTrainer, trl.DistillationConfig)
    trainer = made(*kinds, directory, [{"prompt": text(4, 1)}] * 2, **teacher)
    return trainer, completion()


def made(
    kind: Any, config: Any, directory: Path, rows: Any, options: Any = None, **extra: Any
) -> Any:
    options = {"bf16": False, "per_device_train_batch_size": 2} | (options or {})
    return kind(
        model=tiny_llama(**WIDE),
        args=arguments(config, directory, **options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        memo=memo_train.MemoConfig(alpha=0.5, tile_tokens=512),
        **extra,
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("make", [dpo, grpo, distillation])
def test_no_objective_makes_all_logits(
    make: Callable[[Path], tuple[Any, Any]], tmp_path: Path
) -> None:
    trainer, inputs = make(tmp_path)
    device = planner_of(trainer.model).wrapped.device
    device.reset_peak()
    before = device.counters().device_used_bytes
    with label_tiles(planner_of(trainer.model), 512):
        trainer.compute_loss(trainer.model, inputs).backward()
    peak_bytes = device.counters().device_peak_bytes - before
    assert trainer.model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
    assert peak_bytes < LOGITS_BYTES / 2, f"{peak_bytes / LOGITS_BYTES:.2f} times the logits"
