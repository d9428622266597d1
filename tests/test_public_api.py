"""What users import, frozen: a change here is a change for everybody, and belongs in the README."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import memo_train
import memo_train.trainer
from tests.runtime.ranks import ROOT

NAMES = [
    "MemoConfig",
    "MemoError",
    "MemoryReport",
    "ModelState",
    "Stats",
    "Trainer",
    "Verification",
    "attention",
    "load_plan",
    "memory_report",
    "plan",
    "reset_stats",
    "save_plan",
    "shard_batch",
    "stats",
    "unwrap",
    "use_layouts",
    "verify",
    "wrap",
]
PARAMETERS = {
    "wrap": [
        "model",
        "seq_len",
        "device_gib",
        "host_gib",
        "alpha",
        "tile_tokens",
        "mesh",
        "sp",
        "state",
    ],
    "unwrap": ["model"],
    "plan": ["model"],
    "verify": ["model", "batch", "steps"],
    "memory_report": ["model"],
    "save_plan": ["model", "path", "wait"],
    "load_plan": ["model", "path"],
    "use_layouts": ["model", "on"],
    "shard_batch": ["batch", "mesh"],
    "stats": [],
    "reset_stats": [],
    "attention": ["q", "k", "v", "causal", "scale", "dropout_p", "mask"],
}
OPTIONS = ["device_gib", "host_gib", "alpha", "tile_tokens", "sp", "verify"]
SCRIPT = """
import torch
import transformers
from memo_train import MemoConfig, Trainer, memory_report, plan, stats, unwrap, verify, wrap
from memo_train.trainer import with_memo
from memo_train.trl import SFTTrainer


def train(model: torch.nn.Module, rows: list[dict[str, torch.Tensor]]) -> float:
    wrap(model, seq_len=1024, device_gib=8, alpha=None)
    print(plan(model).prediction.device_peak_bytes, stats().stall_s, verify(model, rows[0]))
    unwrap(model)
    settings = transformers.TrainingArguments(output_dir="out", max_steps=1)
    options = MemoConfig(device_gib=8.0, verify=True)
    trainer = Trainer(model=model, args=settings, train_dataset=rows, memo=options)
    result: float = trainer.train().training_loss
    print(memory_report(trainer.model), SFTTrainer, with_memo(transformers.Seq2SeqTrainer))
    return result
"""


def test_the_names_at_the_root_are_these() -> None:
    assert sorted(memo_train.__all__) == sorted(NAMES)
    assert all(getattr(memo_train, name) is not None for name in NAMES)
    assert memo_train.trainer.__all__ == ["MemoConfig", "Trainer", "with_memo"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_of_a_function_are_these(name: str) -> None:
    assert list(inspect.signature(getattr(memo_train, name)).parameters) == PARAMETERS[name]


def test_the_options_of_a_trainer_are_these() -> None:
    fields = dataclasses.fields(memo_train.MemoConfig)
    assert [f.name for f in fields] == OPTIONS
    assert all(f.metadata["help"] for f in fields)
    assert memo_train.MemoConfig() == memo_train.MemoConfig(None, None, None, None, 1, False)


def test_to_wrap_a_model_needs_no_trainer() -> None:
    code = "import sys, memo_train, memo_train.trl; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_a_user_s_script_is_typed(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--explicit-package-bases", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
