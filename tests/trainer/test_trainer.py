"""`memo_train.Trainer` in place of transformers.Trainer: the same losses, and what it adds."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import HfArgumentParser, TrainingArguments

import memo_train
from memo_train.errors import UnsupportedModel
from memo_train.testing import assert_same_losses
from memo_train.trainer import MemoConfig, with_memo
from tests.trainer.tiny import NUM_STEPS, VOCAB_SIZE, arguments, losses, tiny_llama

TEXT = [{"input_ids": (torch.arange(37) * 5 + i) % VOCAB_SIZE} for i in range(32)]
DATA = [{**row, "labels": row["input_ids"]} for row in TEXT]
MEMO = MemoConfig(alpha=0.5, tile_tokens=8)


def trainer_of(kind: Any, directory: Path, model: Any = None, **options: Any) -> Any:
    extra = {"memo": options.pop("memo")} if "memo" in options else {}
    return kind(
        model=tiny_llama() if model is None else model,
        args=arguments(TrainingArguments, directory, **options),
        train_dataset=DATA,
        eval_dataset=DATA[:6],
        **extra,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3, "max_steps": 4},
        {"bf16": True},
        {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 2},
        {"eval_strategy": "steps", "eval_steps": 4, "train_sampling_strategy": "group_by_length"},
    ],
    ids=str,
)
def test_losses_are_those_of_transformers_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    uncompiled = {n: v for n, v in options.items() if not n.startswith("torch_compile")}
    plain = trainer_of(transformers.Trainer, tmp_path, **uncompiled)
    expected = [*losses(plain), plain.evaluate()["eval_loss"]]
    ours = trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, **options)
    dtype = torch.bfloat16 if options.get("bf16") else torch.float32
    assert_same_losses([*losses(ours), ours.evaluate()["eval_loss"]], expected, dtype=dtype)
    assert len(expected) == options.get("max_steps", NUM_STEPS) + 1


def test_a_trainer_made_later_changes_nothing(tmp_path: Path) -> None:
    """Accelerate has one state for a process, and TrainingArguments empties it."""
    expected = losses(trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, max_steps=2))
    first = trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, max_steps=2)
    later = trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, max_steps=1, bf16=True)
    assert losses(first) == expected
    assert first.accelerator.mixed_precision == "bf16", "the later one's again"
    arguments(TrainingArguments, tmp_path)  # of nobody
    assert first.evaluate()["eval_loss"] < expected[0]
    first.save_model()
    assert losses(later) == pytest.approx(expected[:1], rel=1e-3)


def test_checkpointing_is_turned_off_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "memo_train"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = trainer_of(memo_train.Trainer, tmp_path, gradient_checkpointing=True)
        model = tiny_llama()
        model.gradient_checkpointing_enable()
        trainer_of(memo_train.Trainer, tmp_path, model)
    assert caplog.text.count("gradient_checkpointing") == 2
    assert "is turned off: memo-train's plan decides" in caplog.text
    assert not trainer.args.gradient_checkpointing
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())


def test_a_wrapped_model_is_taken_as_it_is(tmp_path: Path) -> None:
    model = memo_train.wrap(tiny_llama(), alpha=1.0, tile_tokens=16)
    trainer = trainer_of(memo_train.Trainer, tmp_path, model, max_steps=1)
    trainer.train()
    assert memo_train.plan(model).policy.tile_tokens == 16
    with pytest.raises(memo_train.MemoError, match="wrapped already, with options of its own"):
        trainer_of(memo_train.Trainer, tmp_path, model, memo=MemoConfig(tile_tokens=8))
    with pytest.raises(memo_train.MemoError, match="use_liger_kernel would put kernels into it"):
        trainer_of(memo_train.Trainer, tmp_path, model, use_liger_kernel=True)


@pytest.mark.usefixtures("measured_ahead")
def test_log_lines_and_tensorboard_have_the_figures_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    options = {"logging_steps": 2, "max_steps": 4, "report_to": ["tensorboard"]}
    trainer = trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, **options)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 2
    plan = memo_train.plan(trainer.model)
    for row in rows:
        assert row["tokens_per_s"] > 0
        assert row["stall_s"] >= 0
        assert row["alpha"] == plan.policy.alpha > 0
        assert row["planned_peak_gib"] == plan.prediction.device_peak_bytes / 2**30
        # What has no planned address yet may lie beside holes; the plan's peak is of live bytes.
        assert 0.5 < row["device_peak_gib"] / row["planned_peak_gib"] < 1.5
        assert row["host_peak_gib"] > 0
        assert "mfu" not in row  # a CPU has no peak to divide by
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {"train/tokens_per_s", "train/alpha"} <= set(events.Tags()["scalars"])


def test_weights_and_biases_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, max_steps=1, report_to=["wandb"]).train()
    assert {"train/tokens_per_s", "train/alpha"} <= set(dict(wandb.run.summary))
    wandb.finish()


def test_the_memory_report_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, max_steps=2).train()
    written = (tmp_path / "memory_report.txt").read_text()
    assert "device memory:" in written
    assert written in capsys.readouterr().out


def test_verify_prints_a_table_once_and_changes_no_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = losses(trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, max_steps=3))
    capsys.readouterr()
    options = MemoConfig(alpha=0.5, tile_tokens=8, verify=True)
    assert losses(trainer_of(memo_train.Trainer, tmp_path, memo=options, max_steps=3)) == plain
    printed = capsys.readouterr().out
    assert printed.count("||wrapped - plain|| / ||plain||") == 1
    assert "device peak" in printed


def test_options_come_from_the_command_line_and_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: {tmp_path}\nalpha: 0.25\ntile_tokens: 64\nverify: true\n")
    parser = HfArgumentParser((TrainingArguments, MemoConfig))
    assert parser.parse_yaml_file(str(path))[1] == MemoConfig(
        alpha=0.25, tile_tokens=64, verify=True
    )
    words = ["--output_dir", str(tmp_path), "--device_gib", "2.5", "--host_gib", "4"]
    found = parser.parse_args_into_dataclasses(words)[1]
    assert found == MemoConfig(device_gib=2.5, host_gib=4.0)


def test_trl_s_parser_takes_the_options_beside_its_own(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    path = tmp_path / "run.yaml"
    path.write_text(f"output_dir: {tmp_path}\ndevice_gib: 2\nlearning_rate: 0.5\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        parser = trl.TrlParser((trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig, MemoConfig))
        *_, found = parser.parse_args_and_config(
            ["--config", str(path), "--alpha", "1", "--use_cpu", "--bf16", "false"]
        )
    assert found == MemoConfig(device_gib=2.0, alpha=1.0)


def test_any_trainer_of_transformers_can_be_had_with_memo(tmp_path: Path) -> None:
    kind = with_memo(transformers.Seq2SeqTrainer)
    assert kind.__name__ == "Seq2SeqTrainer"
    with pytest.raises(memo_train.MemoError, match=r"derived from transformers\.Trainer"):
        with_memo(dict)


def test_models_of_model_init_are_wrapped_anew(tmp_path: Path) -> None:
    trainer = memo_train.Trainer(
        model_init=lambda: tiny_llama(),
        args=arguments(TrainingArguments, tmp_path, max_steps=2),
        train_dataset=DATA,
        memo=MEMO,
    )
    first = trainer.model
    trainer.train()
    assert trainer.model is not first
    assert memo_train.plan(trainer.model).policy.tile_tokens == 8
    with pytest.raises(UnsupportedModel):
        memo_train.plan(first)


def test_a_batch_that_no_plan_fits_is_tried_smaller(tmp_path: Path) -> None:
    options = {"per_device_train_batch_size": 16, "auto_find_batch_size": True, "max_steps": 2}
    long = [{name: row[name].repeat(3) for name in row} for row in DATA]
    kind = memo_train.Trainer
    arguments_ = arguments(TrainingArguments, tmp_path, **options)
    memo = MemoConfig(device_gib=0.0025, tile_tokens=64)
    trainer = kind(model=tiny_llama(), args=arguments_, train_dataset=long, memo=memo)
    trainer.train()
    assert trainer._train_batch_size < 16
    memo_train.unwrap(trainer.model)  # and with it the cap


def test_a_run_killed_in_its_first_save_starts_anew(tmp_path: Path) -> None:
    trainer = trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, max_steps=2)
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-3").mkdir()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


def test_from_pretrained_reads_what_was_saved(tmp_path: Path) -> None:
    trainer = trainer_of(memo_train.Trainer, tmp_path, memo=MEMO, max_steps=1)
    trainer.train()
    trainer.save_model()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for ours, theirs in zip(again.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_generation_under_no_grad_is_the_plain_model_s() -> None:
    model, ids = tiny_llama().eval(), torch.arange(3, 12)[None]
    expected = model.generate(ids, max_new_tokens=7, do_sample=False)
    memo_train.wrap(model)
    assert torch.equal(model.generate(ids, max_new_tokens=7, do_sample=False), expected)
    with torch.no_grad():
        assert model(ids, use_cache=True).past_key_values.get_seq_length() == 9
        assert model.model(ids, use_cache=True).past_key_values.get_seq_length() == 9
