"""The loop does what a loop written out by hand does, and refuses what it cannot do."""

import json
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_model
from torch import Tensor, nn

import memo_planner
import memo_train
from memo_train.model import Llama, LlamaConfig
from memo_train.trainer import Trainer, TrainerConfig, TrainerError

VOCAB_SIZE = 61


def small_llama() -> Llama:
    torch.manual_seed(11)
    sizes = {"hidden_size": 32, "ffn_size": 48, "num_blocks": 2, "num_heads": 4}
    return Llama(LlamaConfig(vocab_size=VOCAB_SIZE, **sizes, num_kv_heads=2))


def random_batches(num_batches: int, rows: int = 2, tokens: int = 24) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    shape = (rows, tokens)
    ids = [torch.randint(0, VOCAB_SIZE, shape, generator=generator) for _ in range(num_batches)]
    return [{"input_ids": each} for each in ids]


def train(model: nn.Module, batches: Iterable[Any], **options: Any) -> list[Any]:
    config = TrainerConfig(**{"progress": False, **options})
    return Trainer(model, batches, config).train()


def test_losses_equal_a_loop_by_hand() -> None:
    """Level 6: every step's loss, with accumulation, clipping, warm-up and decay of matrices."""
    batches = random_batches(12)
    options = {"num_steps": 6, "learning_rate": 1e-2, "warmup_steps": 3, "schedule": "constant"}
    history = train(
        small_llama(), batches, accumulation_steps=2, max_grad_norm=0.3, weight_decay=0.2, **options
    )
    model = small_llama()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.2)
    for step, metrics in enumerate(history):
        both = torch.cat([batch["input_ids"] for batch in batches[2 * step : 2 * step + 2]])
        loss = model(both, labels=both).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 3)
        assert metrics.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad()
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-5)
        assert metrics.grad_norm == pytest.approx(norm.item(), rel=1e-4)


def test_a_wrapped_model_learns_the_same_and_reports_its_copies() -> None:
    batches = random_batches(8)
    plain = train(small_llama(), batches, num_steps=8, learning_rate=1e-2)
    wrapped = memo_train.wrap(small_llama(), alpha=1.0, tile_tokens=8)
    ours = train(wrapped, batches, num_steps=8, learning_rate=1e-2)
    assert [m.loss for m in ours] == pytest.approx([m.loss for m in plain], rel=1e-5)
    later = ours[1:]  # the first step also measures the model, to plan
    assert all(m.d2h_copies == later[0].d2h_copies > 0 for m in later)
    assert all(m.host_peak_bytes == later[0].host_peak_bytes > 0 for m in later)


def test_a_run_leaves_metrics_plan_and_weights(tmp_path: Path) -> None:
    model = memo_train.wrap(small_llama(), alpha=0.5, tile_tokens=8)
    history = train(model, random_batches(3), num_steps=3, out_dir=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [m.loss for m in history]
    assert json.loads(lines[0])["tokens_per_s"] == history[0].tokens_per_s
    plan = memo_planner.Plan.load(tmp_path / "run" / "plan.json")
    assert plan.policy.tokens == 24
    again = small_llama()
    load_model(again, str(tmp_path / "run" / "model.safetensors"))
    for ours, theirs in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_unwrapped_model_leaves_no_plan(tmp_path: Path) -> None:
    train(small_llama(), random_batches(1), num_steps=1, out_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.jsonl",
        "model.safetensors",
    ]


def test_bf16_computes_in_bfloat16_and_keeps_fp32_weights() -> None:
    model, seen = small_llama(), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _args, output: seen.append(output.dtype))
    batches = random_batches(8)
    half = train(model, batches, num_steps=8, learning_rate=1e-2, bf16=True)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    full = train(small_llama(), batches, num_steps=8, learning_rate=1e-2)
    assert [m.loss for m in half] == pytest.approx([m.loss for m in full], rel=2e-2)


def test_the_seed_decides_dropout() -> None:
    def losses(seed: int) -> list[float]:
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": VOCAB_SIZE}
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            **sizes, resid_pdrop=0.5, bos_token_id=0, eos_token_id=0, use_cache=False
        )
        model = transformers.GPT2LMHeadModel(config)
        return [m.loss for m in train(model, random_batches(2), num_steps=2, seed=seed)]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_cosine_falls_to_zero_after_a_linear_rise() -> None:
    config = TrainerConfig(num_steps=12, warmup_steps=4)
    factors = [config.rate_factor(step) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0.0)
    assert TrainerConfig(num_steps=3, schedule="constant").rate_factor(2) == 1.0


def test_batches_that_end_early_are_named() -> None:
    with pytest.raises(TrainerError, match="step 2 needs 2 batches, 1 were left"):
        train(small_llama(), random_batches(3), num_steps=2, accumulation_steps=2)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    model = small_llama()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(TrainerError, match="step 1: loss is nan"):
        train(model, random_batches(1), num_steps=1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"tokens": torch.zeros(2, 4)}, r"has \['tokens'\] but no input_ids"),
        ({"input_ids": torch.zeros(4, dtype=torch.int64)}, r"both must be \[rows, tokens\]"),
        (
            {
                "input_ids": torch.zeros(1, 4, dtype=torch.int64),
                "labels": torch.full((1, 4), -100),
            },
            "no label of the step counts",
        ),
    ],
)
def test_bad_batches_are_refused(batch: dict[str, Tensor], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        train(small_llama(), repeat(batch), num_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0, must be at least 1"),
        ({"accumulation_steps": 0}, "accumulation_steps is 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0, must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        TrainerConfig(**{"num_steps": 1, **options})
