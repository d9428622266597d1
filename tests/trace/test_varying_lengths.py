"""Steps that all have another shape: one profile, one plan a bucket, bytes as predicted."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from torch import nn

import memo_train
from memo_train.model import Llama, LlamaConfig
from memo_train.planning import StepPlanner
from memo_train.trace._profile import state_bytes

torch.set_num_threads(1)
GIB = 2**30


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
    """Level 2: the device's peak is at most the prediction; copies are it, but for small ones."""
    gc.collect()
    others_bytes = memo_train.stats().device_used_bytes  # what earlier tests left in the process
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, 1, 8)
    optimizer.step()
    optimizer.zero_grad()
    memo_train.wrap(model, alpha=alpha, tile_tokens=64)
    gc.collect()
    for tokens in random.Random(3).sample(range(200, 2600), 3):
        for _ in range(2):
            memo_train.reset_stats()
            ids = torch.randint(61, (batch, tokens))
            model(ids, ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        stats, found = memo_train.stats(), memo_train.plan(model).prediction
        if not alpha:  # copies may use all that the limit leaves free, beyond what is predicted
            peak_bytes = stats.device_peak_bytes - others_bytes
            assert peak_bytes <= found.device_peak_bytes, tokens
            assert peak_bytes >= 0.8 * found.device_peak_bytes, tokens
        assert 0.99 * found.host_peak_bytes <= stats.d2h_bytes <= found.host_peak_bytes, tokens
    memo_train.unwrap(model)
