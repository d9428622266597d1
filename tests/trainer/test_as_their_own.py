"""What Transformers' and TRL's own tests ask of losses, accumulation and resuming, of our classes.

Their tests are not in their packages, and most need models and data from the net. These are written
after what they train: the same options, a small model made here, and the unwrapped run beside it.
docs/trainers.md lists them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import TrainingArguments

import memo_train
from memo_train.testing import assert_same_losses
from tests.trainer.tiny import VOCAB_SIZE, arguments, losses, text, tiny_llama, tiny_tokenizer

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

import memo_train.trl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of options that go
MEMO = memo_train.MemoConfig(alpha=0.5, tile_tokens=8)
ROWS = [
    {"input_ids": ids, "labels": [-100] * (i % 5) + ids[i % 5 :]}
    for i, ids in enumerate(((torch.arange(30) * 5 + i) % VOCAB_SIZE).tolist() for i in range(24))
]


def trainer(kind: Any, out: Path, options: dict[str, Any] | None = None, **extra: Any) -> Any:
    if kind is memo_train.Trainer:
        extra["memo"] = MEMO
    options = {"max_steps": 3, "train_sampling_strategy": "sequential"} | (options or {})
    args = arguments(TrainingArguments, out, **options)
    rows = {"train_dataset": ROWS, "eval_dataset": ROWS[:5]}
    return kind(model=extra.pop("model", None) or tiny_llama(), args=args, **rows, **extra)


def both(out: Path, options: dict[str, Any] | None = None, **extra: Any) -> tuple[Any, Any]:
    """Transformers' trainer and ours, trained; their losses are compared (level 6)."""
    # One after the other: making one sets the seed.
    plain = trainer(transformers.Trainer, out, options, **extra)
    expected = losses(plain)
    ours = trainer(memo_train.Trainer, out, options, **extra)
    assert_same_losses(losses(ours), expected)
    assert len(expected) == plain.args.max_steps
    return plain, ours


# Transformers: losses


def squared(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """A loss of a user's own, made of logits."""
    logits = outputs["logits"][:, :-1]
    loss = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    count = labels[:, 1:].ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
    return (loss / count) ** 2


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"label_smoothing_factor": 0.1}, {}),
        ({"neftune_noise_alpha": 5.0}, {}),
        ({"max_grad_norm": 0.3, "weight_decay": 0.1, "warmup_steps": 2}, {}),
        ({"average_tokens_across_devices": False, "gradient_accumulation_steps": 2}, {}),
        ({"optim": "adafactor", "lr_scheduler_type": "cosine"}, {}),
        ({"include_num_input_tokens_seen": "all"}, {}),
        ({"gradient_accumulation_steps": 2}, {"compute_loss_func": squared}),
    ],
    # The same in all processes: a function's text has its address in it.
    ids=lambda given: " ".join(given) or "nothing else",
)
def test_options_that_change_a_loss(
    options: dict[str, Any], extra: dict[str, Any], tmp_path: Path
) -> None:
    plain, ours = both(tmp_path, options, **extra)
    for theirs, mine in zip(plain.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    assert ours.state.num_input_tokens_seen == plain.state.num_input_tokens_seen


def test_accumulated_steps_are_those_of_one_large_batch(tmp_path: Path) -> None:
    """Rows have unlike numbers of labels; a mean of means would show."""
    sizes = [(8, 1), (2, 4), (1, 8)]
    found = [
        losses(
            trainer(
                memo_train.Trainer,
                tmp_path,
                {"per_device_train_batch_size": rows, "gradient_accumulation_steps": count},
            )
        )
        for rows, count in sizes
    ]
    for each in found[1:]:
        assert each == pytest.approx(found[0], rel=1e-5)


def test_predictions_and_metrics_are_theirs(tmp_path: Path) -> None:
    """The logits of whole sequences, which are asked for after the step."""

    def right(predicted: Any) -> dict[str, float]:
        return {"right": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}

    plain, ours = both(tmp_path, {"eval_accumulation_steps": 1}, compute_metrics=right)
    expected, found = plain.predict(ROWS[:5]), ours.predict(ROWS[:5])
    np.testing.assert_allclose(found.predictions, expected.predictions, rtol=1e-4, atol=1e-4)
    assert found.metrics["test_right"] == expected.metrics["test_right"]
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-5)


# Transformers: resuming


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_resumed_run_ends_in_the_same_weights_and_state(accumulated: int, tmp_path: Path) -> None:
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    options["gradient_accumulation_steps"] = accumulated
    whole = trainer(memo_train.Trainer, tmp_path, options)
    expected = losses(whole)
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert kept == {"checkpoint-4", "checkpoint-6"}
    again = trainer(memo_train.Trainer, tmp_path, options)
    again.train(str(tmp_path / "checkpoint-4"))
    assert [row["loss"] for row in again.state.log_history if "loss" in row] == expected
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    ignored = {"log_history"}  # seconds are in it
    first, second = vars(whole.state), vars(again.state)
    assert {k: v for k, v in second.items() if k not in ignored} == {
        k: v for k, v in first.items() if k not in ignored
    }


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {
        "load_best_model_at_end": True,
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
    }
    run = trainer(memo_train.Trainer, tmp_path, options)
    run.train()
    evaluated = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
    assert min(evaluated) < evaluated[-1], "the last one is the best: nothing is seen"
    assert run.evaluate()["eval_loss"] == min(evaluated) == run.state.best_metric


# TRL


def sft(kind: Any, out: Path, **options: Any) -> Any:
    rows = [{"prompt": text(4, i), "completion": text(5 + i % 7, 3 * i)} for i in range(12)]
    return made(kind, trl.SFTConfig, out, rows, options)


def dpo(kind: Any, out: Path, **options: Any) -> Any:
    rows = [
        {"prompt": text(4, i), "chosen": text(5 + i % 3, 3 * i), "rejected": text(7, 5 * i)}
        for i in range(12)
    ]
    return made(kind, trl.DPOConfig, out, rows, options, ref_model=tiny_llama())


def made(
    kind: Any, config: Any, out: Path, rows: Any, options: dict[str, Any], **extra: Any
) -> Any:
    if kind.__module__ == "memo_train.trl":
        extra["memo"] = MEMO
    given = {"bf16": False, "max_length": None, "max_steps": 3, "learning_rate": 1e-2} | options
    return kind(
        model=tiny_llama(),
        args=arguments(config, out, **given),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
        **extra,
    )


def assert_as_plain(plain: Any, ours: Any) -> None:
    """Losses, and TRL's own metrics of each step."""
    expected = losses(plain)
    assert_same_losses(losses(ours), expected)
    names = ("mean_token_accuracy", "num_tokens", "rewards/accuracies", "rewards/margins")
    for theirs, mine in zip(plain.state.log_history, ours.state.log_history, strict=True):
        for name in names:
            assert (name in mine) == (name in theirs)
            assert mine.get(name, 0) == pytest.approx(theirs.get(name, 0), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dft"},
        {"packing": True, "max_length": 16, "packing_strategy": "wrapped"},
        {"pad_to_multiple_of": 16},
        {"label_smoothing_factor": 0.1},
        {"max_length": 8},
    ],
    ids=str,
)
def test_sft_by_the_options_of_its_own_tests(options: dict[str, Any], tmp_path: Path) -> None:
    plain = sft(trl.SFTTrainer, tmp_path, **options)
    assert_as_plain(plain, sft(memo_train.trl.SFTTrainer, tmp_path, **options))


SMOOTHED = ("robust", "exo_pair")
LOSSES = ("hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero")


@pytest.mark.parametrize(
    "options",
    [
        *({"loss_type": name, "label_smoothing": 0.1} for name in SMOOTHED),
        *({"loss_type": name} for name in LOSSES),
        *({"loss_type": name} for name in ("apo_down", "discopop", "sft", "sigmoid_norm")),
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.2]},
        {"precompute_ref_log_probs": True},
        {"f_divergence_type": "js_divergence"},
        {"ld_alpha": 0.5},
        {"use_weighting": True},
        {"padding_free": True},
        {"sync_ref_model": True, "ref_model_sync_steps": 1},
    ],
    ids=str,
)
def test_dpo_by_the_options_of_its_own_tests(options: dict[str, Any], tmp_path: Path) -> None:
    plain = dpo(trl.DPOTrainer, tmp_path, **options)
    assert_as_plain(plain, dpo(memo_train.trl.DPOTrainer, tmp_path, **options))
