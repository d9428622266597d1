"""Profiles on disk: measured once, for that model only, and never a reason to fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import memo_train
from memo_planner import Profile
from memo_train.model import Llama, LlamaConfig

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEMO_TRAIN_CACHE", str(tmp_path / "profiles"))
    return tmp_path / "profiles"


def make_model(num_heads: int = 4) -> nn.Module:
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "ffn_size": 48, "num_kv_heads": 2, "num_heads": num_heads}
    return Llama(LlamaConfig(vocab_size=61, num_blocks=2, **sizes))


def profile_of(model: nn.Module) -> Profile:
    """As `wrap` measured or found it, but for the link, which is measured every time."""
    memo_train.wrap(model, seq_len=16, tile_tokens=8)
    profile = memo_train.plan(model).profile
    memo_train.unwrap(model)
    return replace(profile, link=replace(profile.link, d2h_bytes_per_s=1, h2d_bytes_per_s=1))


@pytest.mark.usefixtures("measured_ahead")
def test_an_equal_model_is_not_measured_again(folder: Path) -> None:
    first = profile_of(make_model())
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    # Of one sequence and of more than one, in its own types and under autocast.
    assert len(written) == 4
    assert profile_of(make_model()) == first
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written


@pytest.mark.usefixtures("measured_ahead")
def test_other_code_or_another_configuration_is_measured(folder: Path) -> None:
    profile_of(make_model())
    model = make_model()
    block = model.model.blocks[0]
    whole = block.forward
    block.forward = lambda *args, **kwargs: whole(*args, **kwargs)
    profile_of(model)
    assert len(list(folder.iterdir())) == 8


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', "\x00\xff"])
def test_a_file_of_something_else_is_written_anew(folder: Path, content: str) -> None:
    profile_of(make_model())
    files = sorted(folder.iterdir())
    for file in files:
        file.write_text(content)
    profile_of(make_model())
    for file in files:
        assert json.loads(file.read_text())["format"] == "memo-measured-profile"
    assert sorted(folder.iterdir()) == files


def test_a_profile_out_of_range_is_written_anew(folder: Path) -> None:
    profile_of(make_model())
    for file in folder.iterdir():
        document = json.loads(file.read_text())
        document["profile"]["x_bytes_per_token"] = -1.0
        file.write_text(json.dumps(document))
    assert profile_of(make_model()).x_bytes_per_token > 0


def test_a_place_that_cannot_be_written_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEMO_TRAIN_CACHE", str(tmp_path / "file" / "below"))
    assert profile_of(make_model()).num_blocks == 2


def test_an_empty_variable_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMO_TRAIN_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile_of(make_model())
    assert not list(tmp_path.iterdir())


def test_without_the_variable_it_is_where_caches_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEMO_TRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile_of(make_model())
    assert len(list((tmp_path / "memo-train").glob("*.profile.json"))) == 1
