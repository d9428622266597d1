"""Twenty training steps follow plain training's, loss by loss (numerics level 6)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import memo_train
from memo_train.testing import assert_same_losses
from tests.runtime.causal_lms import MODELS, VOCAB_SIZE
from tests.runtime.policies import POLICIES, force

STEPS = 20


def train(model: nn.Module, *, autocast: bool = False) -> list[float]:
    """The losses of 20 steps on sequences that count upwards, which a small model can learn."""
    numbers = torch.Generator().manual_seed(7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        start = torch.randint(VOCAB_SIZE, (2, 1), generator=numbers)
        ids = (start + torch.arange(37)) % VOCAB_SIZE
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["own", "llama_gqa"])
def test_losses_follow_plain_training(name: str, wrapped) -> None:
    plain = train(MODELS[name]())
    assert plain[-1] < 0.7 * plain[0], "the task is learnt, so losses mean something"
    curves = {p: train(wrapped(MODELS[name](), p)) for p in POLICIES}
    assert_same_losses(curves["keep"], plain)
    for curve in curves.values():
        assert curve == curves["keep"]


def test_bf16_losses_follow_plain_training(wrapped) -> None:
    plain = train(MODELS["own"](), autocast=True)
    ours = train(wrapped(MODELS["own"](), "mixed"), autocast=True)
    assert_same_losses(ours, plain, dtype=torch.bfloat16)


def test_losses_under_the_planners_own_policy() -> None:
    plain = train(MODELS["llama_gqa"]())
    model = memo_train.wrap(MODELS["llama_gqa"](), tile_tokens=8)
    assert_same_losses(train(model), plain)


def test_a_wrong_gradient_would_show(wrapped) -> None:
    """The gradient of one row of one weight is lost: the losses leave the tolerance."""
    plain = train(MODELS["own"]())
    model = wrapped(MODELS["own"]())
    lose_row = torch.ones(48, 1).index_fill(0, torch.tensor(0), 0.0)
    model.model.blocks[0].mlp.up_proj.weight.register_hook(lambda g: g * lose_row)
    with pytest.raises(AssertionError, match="off by"):
        assert_same_losses(train(model), plain)


def test_policy_may_change_in_mid_training(wrapped) -> None:
    model = wrapped(MODELS["own"](), "keep")
    keep = train(model)
    other = wrapped(MODELS["own"](), "keep")
    order = iter(POLICIES * STEPS)
    other.register_forward_pre_hook(lambda *_: force(other, next(order), 8) and None)
    assert train(other) == keep
