"""TRL's trainers with memo-train: the losses of the same trainer unwrapped, step by step.

TRL's own tests are not in its package; these are written after what they train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import memo_train
from memo_train.testing import assert_same_losses
from tests.trainer.tiny import (
    NUM_STEPS,
    arguments,
    losses,
    text,
    tiny_llama,
    tiny_scorer,
    tiny_tokenizer,
)

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")

import memo_train.trl  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
OPTIONS = {"bf16": False, "max_length": None}


def rows_of_tokens() -> Any:
    rows = [{"input_ids": [3 + (i + 5 * n) % 60 for n in range(11 + i % 9)]} for i in range(20)]
    return datasets.Dataset.from_list(rows)


def rows_of_completions() -> Any:
    rows = [{"prompt": text(4, i), "completion": text(5 + i % 7, 3 * i)} for i in range(20)]
    return datasets.Dataset.from_list(rows)


def rows_of_preferences() -> Any:
    rows = [
        {"prompt": text(4, i), "chosen": text(5 + i % 3, 3 * i), "rejected": text(7, 5 * i)}
        for i in range(20)
    ]
    return datasets.Dataset.from_list(rows)


SFT: dict[str, tuple[dict[str, Any], Any]] = {
    "varying lengths": ({}, rows_of_tokens),
    "packing": ({"packing": True, "max_length": 32}, rows_of_tokens),
    "padding-free": ({"padding_free": True}, rows_of_tokens),
    "completion only": ({"completion_only_loss": True}, rows_of_completions),
    "accumulation": ({"gradient_accumulation_steps": 2}, rows_of_tokens),
}


def sft(kind: Any, directory: Path, name: str, **extra: Any) -> Any:
    options, rows = SFT[name]
    return kind(
        model=extra.pop("model", None) or tiny_llama(),
        args=arguments(trl.SFTConfig, directory, **(OPTIONS | options)),
        train_dataset=rows(),
        processing_class=tiny_tokenizer(),
        **extra,
    )


def memo() -> memo_train.MemoConfig:
    return memo_train.MemoConfig(alpha=0.5, tile_tokens=8)


@pytest.mark.parametrize("name", SFT)
def test_sft_has_the_losses_of_the_unwrapped_run(name: str, tmp_path: Path) -> None:
    plain = losses(sft(trl.SFTTrainer, tmp_path, name))
    trainer = sft(memo_train.trl.SFTTrainer, tmp_path, name, memo=memo())
    assert_same_losses(losses(trainer), plain)
    assert len(plain) == NUM_STEPS
    stats = memo_train.stats()
    assert stats.swap_tiles > 0


def lora() -> Any:
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])


def test_sft_puts_adapters_in_before_it_wraps(tmp_path: Path) -> None:
    plain = losses(sft(trl.SFTTrainer, tmp_path, "varying lengths", peft_config=lora()))
    trainer = sft(
        memo_train.trl.SFTTrainer, tmp_path, "varying lengths", peft_config=lora(), memo=memo()
    )
    assert_same_losses(losses(trainer), plain)
    trainer.save_model()
    saved = {path.name for path in tmp_path.iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
    again = peft.PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    ids = torch.arange(9)[None]
    memo_train.unwrap(trainer.model)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, trainer.model.eval()(ids).logits)


def test_a_model_wrapped_before_takes_no_adapters_after(tmp_path: Path) -> None:
    model = memo_train.wrap(tiny_llama())
    with pytest.raises(memo_train.MemoError, match="give the trainer the model unwrapped"):
        sft(
            memo_train.trl.SFTTrainer,
            tmp_path,
            "varying lengths",
            peft_config=lora(),
            model=model,
        )


def test_sft_takes_a_model_wrapped_before_and_may_be_wrapped_after(tmp_path: Path) -> None:
    plain = losses(sft(trl.SFTTrainer, tmp_path, "varying lengths"))
    before = memo_train.wrap(tiny_llama(), alpha=0.5, tile_tokens=8)
    trainer = sft(memo_train.trl.SFTTrainer, tmp_path, "varying lengths", model=before)
    assert_same_losses(losses(trainer), plain)
    after = sft(trl.SFTTrainer, tmp_path, "varying lengths", model=tiny_llama())
    after.args.gradient_checkpointing = after.args.activation_checkpointing = False
    memo_train.wrap(after.model, alpha=0.5, tile_tokens=8)
    with pytest.warns(UserWarning, match="the loss of this call is not tiled"):
        assert_same_losses(losses(after), plain)


def dpo(kind: Any, directory: Path, **extra: Any) -> Any:
    if "peft_config" not in extra:
        extra["ref_model"] = tiny_llama()
    return kind(
        model=tiny_llama(),
        args=arguments(trl.DPOConfig, directory, **OPTIONS),
        train_dataset=rows_of_preferences(),
        processing_class=tiny_tokenizer(),
        **extra,
    )


@pytest.mark.parametrize("adapters", [False, True], ids=["reference model", "adapters"])
def test_dpo_has_the_losses_of_the_unwrapped_run(adapters: bool, tmp_path: Path) -> None:
    plain = losses(dpo(trl.DPOTrainer, tmp_path, **({"peft_config": lora()} if adapters else {})))
    extra = {"peft_config": lora()} if adapters else {}
    trainer = dpo(memo_train.trl.DPOTrainer, tmp_path, memo=memo(), **extra)
    assert_same_losses(losses(trainer), plain)
    assert len(plain) == NUM_STEPS
    assert plain[0] != plain[-1]


def test_ranks_share_no_sequences_of_a_loss_that_needs_them_whole(tmp_path: Path) -> None:
    with pytest.raises(memo_train.MemoError, match=r"sp=2 is for memo_train\.Trainer and"):
        dpo(memo_train.trl.DPOTrainer, tmp_path, memo=memo_train.MemoConfig(sp=2))


def lengths_of(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs from completion to completion."""
    return [float(sum(map(ord, each)) % 17) for each in completions]


def grpo(kind: Any, directory: Path, **extra: Any) -> Any:
    options = {
        "bf16": False,
        "num_generations": 2,
        "max_completion_length": 6,
        "temperature": 1.0,
        "learning_rate": 1e-2,
    }
    return kind(
        model=tiny_llama(),
        reward_funcs=lengths_of,
        args=arguments(trl.GRPOConfig, directory, **options),
        train_dataset=rows_of_completions().remove_columns("completion"),
        processing_class=tiny_tokenizer(),
        **extra,
    )


def test_grpo_generates_and_takes_the_steps_of_the_unwrapped_run(tmp_path: Path) -> None:
    """Its losses are zero but for rounding (advantages of a group are), its gradients are not."""
    plain = grpo(trl.GRPOTrainer, tmp_path)
    losses(plain)
    trainer = grpo(memo_train.trl.GRPOTrainer, tmp_path, memo=memo())
    losses(trainer)
    for name, allowed in (("reward", 0.0), ("grad_norm", 1e-4), ("entropy", 1e-5)):
        theirs, ours = (
            [r[name] for r in t.state.log_history if name in r] for t in (plain, trainer)
        )
        assert ours == pytest.approx(theirs, rel=allowed)
        assert len(theirs) == NUM_STEPS
    assert max(r["grad_norm"] for r in plain.state.log_history if "grad_norm" in r) > 0.1
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def reward(kind: Any, directory: Path, **extra: Any) -> Any:
    return kind(
        model=tiny_scorer(),
        args=arguments(trl.RewardConfig, directory, **OPTIONS),
        train_dataset=rows_of_preferences(),
        processing_class=tiny_tokenizer(),
        **extra,
    )


def test_reward_has_the_losses_of_the_unwrapped_run(tmp_path: Path) -> None:
    plain = losses(reward(trl.RewardTrainer, tmp_path))
    trainer = reward(memo_train.trl.RewardTrainer, tmp_path, memo=memo())
    memo_train.reset_stats()
    assert_same_losses(losses(trainer), plain)
    assert memo_train.stats().swap_tiles > 0
    assert plain[0] != plain[-1]


def test_every_trainer_of_trl_is_there_and_says_what_is_missing() -> None:
    for name in ("SFT", "DPO", "GRPO", "Reward", "KTO", "RLOO", "Distillation"):
        made = getattr(memo_train.trl, f"{name}Trainer")
        assert issubclass(made, getattr(trl, f"{name}Trainer"))
        assert made is getattr(memo_train.trl, f"{name}Trainer")
    with pytest.raises(AttributeError, match="has no NoSuchTrainer"):
        memo_train.trl.NoSuchTrainer  # noqa: B018
