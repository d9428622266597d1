"""Steps that all have another shape: one profile, one plan a bucket, bytes as predicted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import memo_train
from memo_train.model import Llama, LlamaConfig
from memo_train.planning import StepPlanner
from memo_train.trace._profile import state_bytes
from tests.trace.own_process import rows_of

torch.set_num_threads(1)
GIB = 2**30
WORK_SPACE_BYTES = 3 * 2**19
"""Of attention's kernels: a long sequence needs it, one of some hundred tokens does not."""


def make_model() -> nn.Module:
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "ffn_size": 160, "num_heads": 4, "num_kv_heads": 2}
    return Llama(LlamaConfig(vocab_size=61, num_blocks=3, **sizes))


def planner_of(model: nn.Module) -> StepPlanner:
    planner = model._memo_train
    assert isinstance(planner, StepPlanner)
    return planner


def step(model: nn.Module, batch: int, tokens: int) -> None:
    ids = torch.randint(61, (batch, tokens))
    model(ids, ids).loss.backward()
    model.zero_grad()


def test_no_length_and_no_batch_is_profiled_again() -> None:
    """Also under a limit, and for lengths on both sides of what a profile runs."""
    model = make_model()
    memo_train.wrap(model, device_gib=(state_bytes(model) + 40 * 2**20) / GIB)
    profiles = dict(planner_of(model)._profiles)
    assert profiles
    for batch, tokens in ((1, 40), (3, 41), (1, 1300), (2, 700), (1, 2600)):
        step(model, batch, tokens)
    assert planner_of(model)._profiles == profiles
    memo_train.unwrap(model)


def test_lengths_of_a_bucket_go_by_one_plan() -> None:
    model = make_model()
    memo_train.wrap(model)
    for tokens in (1030, 1100, 1150, 1153):
        step(model, 1, tokens)
        assert memo_train.plan(model).policy.tokens == tokens
    longest = [shape.tokens for shape, *_ in planner_of(model)._buckets]
    assert longest == [1152, 1280]
    memo_train.unwrap(model)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_one_profile_predicts_every_length_and_batch(batch: int, alpha: float) -> None:
    """Level 2: peaks on the device and on the host are at most the prediction, and near it."""
    rows = rows_of("varying_peaks.py", str(alpha), str(batch))
    assert len(rows) == 3
    for row in rows:
        assert row["device_peak_bytes"] <= row["predicted_device_bytes"], row
        most_bytes = row["predicted_device_bytes"] - WORK_SPACE_BYTES
        assert row["device_peak_bytes"] >= most_bytes / 1.05, row
        assert row["host_peak_bytes"] <= row["predicted_host_bytes"], row
        assert row["host_peak_bytes"] >= 0.95 * row["predicted_host_bytes"], row
