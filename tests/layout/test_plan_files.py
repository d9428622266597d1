"""A plan and its layout on disk: the next run starts where this one ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import memo_train
from memo_planner.errors import PlanFileError
from memo_train.device import get_cpu_device
from memo_train.errors import UnsupportedModel
from tests.layout.steps import Training, only_report
from tests.runtime.causal_lms import MODELS

torch.set_num_threads(1)


def wrapped(family: str = "llama_gqa") -> nn.Module:
    return memo_train.wrap(MODELS[family](), alpha=0.5, tile_tokens=16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = Training(wrapped())
    training.step()
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    memo_train.save_plan(training.model, path)
    return path


def copied(saved: Path, folder: Path, **changes: Any) -> Path:
    """Both files in another folder, with changes to the layout's."""
    layout = json.loads(saved.with_suffix(".layout.json").read_text()) | changes
    (folder / "plan.json").write_text(saved.read_text())
    (folder / "plan.layout.json").write_text(json.dumps(layout))
    return folder / "plan.json"


def test_the_first_step_of_the_next_run_is_planned(saved: Path) -> None:
    training, plain = Training(wrapped()), Training(wrapped())
    memo_train.use_layouts(plain.model, False)
    plan = memo_train.load_plan(training.model, saved)
    assert memo_train.plan(training.model) is plan
    for each in (training, plain):
        each.step()
    report = only_report(training.model)
    assert (report.state, report.num_steps, report.num_steps_by_size) == ("planned", 1, 0)
    assert (report.unplanned, report.missing) == (0, 0)
    assert report.peak_bytes == report.lower_bound_bytes
    assert training.losses == plain.losses


def test_a_plan_without_a_layout_yet_is_recorded(tmp_path: Path) -> None:
    model = memo_train.wrap(MODELS["llama_gqa"](), seq_len=64, alpha=0.5)
    memo_train.save_plan(model, tmp_path / "plan.json")
    other = Training(wrapped())
    memo_train.load_plan(other.model, tmp_path / "plan.json")
    other.step(1, 64)
    assert only_report(other.model).num_steps_by_size == 1


@pytest.mark.parametrize(
    ("family", "mode", "wrong"),
    [
        ("gpt2", "train", "model_hash is '[0-9a-f]{64}', this model's is"),
        ("llama_gqa", "eval", "training is True, this model's is False"),
    ],
)
def test_another_model_is_refused(saved: Path, family: str, mode: str, wrong: str) -> None:
    model = wrapped(family)
    getattr(model, mode)()
    with pytest.raises(PlanFileError, match=wrong):
        memo_train.load_plan(model, saved)
    with pytest.raises(UnsupportedModel, match="is not wrapped"):
        memo_train.load_plan(MODELS["own"](), saved)


def test_another_precision_is_refused(saved: Path) -> None:
    model = wrapped()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(PlanFileError, match="precision is 'its own types', this model's is 'auto"),
    ):
        memo_train.load_plan(model, saved)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"format": "memo-plan"}, "format is 'memo-plan', expected 'memo-layout'"),
        ({"version": 2}, "version is 2, expected 1"),
        ({"version": True}, "version is True, expected 1"),
        ({"plan_hash": "abc"}, "plan_hash is 'abc', expected"),
        ({"park_pre": True}, "hash is"),
        ({"hash": None}, "hash is None, what it is of gives"),
    ],
)
def test_another_file_is_refused(saved: Path, tmp_path: Path, changes: Any, wrong: str) -> None:
    path = copied(saved, tmp_path, **changes)
    with pytest.raises(PlanFileError, match=f"plan.layout.json: {wrong}"):
        memo_train.load_plan(wrapped(), path)


def test_a_missing_file_is_told(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(saved.read_text())
    with pytest.raises(PlanFileError, match=r"plan.layout.json: cannot be read"):
        memo_train.load_plan(wrapped(), tmp_path / "plan.json")


LAYOUT = {
    "size_bytes": [512, 1024],
    "offset_bytes": [0, -1],
    "mark_values": [0],
    "mark_firsts": [0],
    "places": [["forward", "between", -1, -1, ""]],
    "lower_bound_bytes": 512,
    "seconds": 0.5,
}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"size_bytes": [512]}, "size_bytes and offset_bytes differ in length"),
        ({"size_bytes": [512, -1]}, r"size_bytes\[1\] is -1; it must be from 1"),
        ({"size_bytes": [512, 100]}, "request 1 has 100 bytes"),
        ({"offset_bytes": [0, 32]}, "request 1 has 1024 bytes at offset 32"),
        ({"offset_bytes": [0, 1.5]}, r"offset_bytes\[1\] is 1.5"),
        ({"mark_firsts": [3]}, "before request 3"),
        ({"mark_values": [1]}, "a mark is of place 1; there are 1"),
        ({"places": [["forward", "between", -1, -1]]}, "a place is"),
        ({"places": [["sometime", "between", -1, -1, ""]]}, "phase 'sometime'"),
        ({"places": 3}, "places is a int, expected a list"),
        ({"lower_bound_bytes": 1024}, "the peak is 512 bytes, below its bound 1,024"),
        ({"seconds": -1}, "seconds is -1"),
        ({"more": 1}, r"layout has missing fields \[\] and unknown fields \['more'\]"),
    ],
)
def test_a_wrong_layout_is_refused(tmp_path: Path, changes: Any, wrong: str) -> None:
    from memo_train.layout._file import _decode

    device = get_cpu_device()
    with pytest.raises(memo_train.MemoError, match=wrong):
        device.make_layout(_decode(LAYOUT | changes))
    assert device.make_layout(_decode(LAYOUT)).peak_bytes == _decode(LAYOUT).peak_bytes == 512
