"""`verify`: a wrapped step beside a plain one, and the faults it must find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import memo_train
from memo_train.errors import InvalidInput, UnsupportedModel, VerificationFailed
from memo_train.runtime._block import BlockPass
from tests.runtime.small_llama import VOCAB_SIZE, own_llama

Gradients = list[torch.Tensor | None]


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, VOCAB_SIZE, (2, 37), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "labels": ids}


def wrapped_llama(**options: Any) -> nn.Module:
    return memo_train.wrap(own_llama(), tile_tokens=8, alpha=0.5, **options)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[Gradients], Gradients]) -> None:
    """Let every block hand out other gradients than it computed."""
    backward = BlockPass.backward

    def spoilt(self: BlockPass, dy: torch.Tensor) -> tuple[torch.Tensor | None, Gradients]:
        dx, gradients = backward(self, dy)
        return dx, change(gradients)

    monkeypatch.setattr(BlockPass, "backward", spoilt)


def test_a_right_step_passes_with_all_figures() -> None:
    result = memo_train.verify(wrapped_llama(), batch())
    names = [name for name, _ in own_llama().named_parameters()]
    assert sorted(row.name for row in result.rows) == sorted(names)
    assert all(row.error is not None and row.error < 1e-5 for row in result.rows)
    assert result.wrapped.loss == pytest.approx(result.plain.loss, rel=1e-6)
    assert result.wrapped.host_peak_bytes > 0
    assert min(result.plain.seconds, result.wrapped.seconds) > 0
    assert "gradients of" in str(result)
    assert "FAULT" not in str(result)


def test_a_wrong_gradient_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped_llama()
    spoil(monkeypatch, lambda gradients: [None if g is None else 1.01 * g for g in gradients])
    with pytest.raises(VerificationFailed, match=r"blocks\.0\.\S+: off by 0\.01") as failed:
        memo_train.verify(model, batch())
    assert len(failed.value.verification.faults) > 3


def test_a_missing_gradient_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped_llama()
    spoil(monkeypatch, lambda gradients: [None, *gradients[1:]])
    with pytest.raises(VerificationFailed, match="none in the wrapped one"):
        memo_train.verify(model, batch())


def test_a_wrong_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped_llama()
    forward = BlockPass.forward
    monkeypatch.setattr(BlockPass, "forward", lambda self, x, **k: 1.5 * forward(self, x, **k))
    with pytest.raises(VerificationFailed, match="loss is"):
        memo_train.verify(model, batch())


def test_it_leaves_the_model_as_it_was() -> None:
    model = wrapped_llama()
    model(**batch()).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    values = {n: g.clone() for n, g in gradients.items() if g is not None}
    state = torch.get_rng_state()
    memo_train.verify(model, batch(), steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name]
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, values[name])


def test_the_cap_holds_again_afterwards() -> None:
    model = wrapped_llama(device_gib=1.0)
    cap_bytes = memo_train.memory.devices_in_use()[0].counters().device_cap_bytes
    memo_train.verify(model, batch(), steps=1)
    assert memo_train.memory.devices_in_use()[0].counters().device_cap_bytes == cap_bytes
    memo_train.unwrap(model)


def test_dropout_is_off_and_said_so() -> None:
    torch.manual_seed(1)
    model = own_llama()
    for block in model.model.blocks:  # type: ignore[union-attr]
        block.mlp = nn.Sequential(block.mlp, nn.Dropout(0.5))
    memo_train.wrap(model, tile_tokens=8, alpha=0.0)
    assert "dropout was off" in str(memo_train.verify(model, batch(), steps=1))
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.5}


def test_what_it_cannot_compare_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="not wrapped"):
        memo_train.verify(own_llama(), batch())
    model = wrapped_llama()
    with pytest.raises(InvalidInput, match="labels"):
        memo_train.verify(model, {"input_ids": batch()["input_ids"]})
    with pytest.raises(InvalidInput, match="steps"):
        memo_train.verify(model, batch(), steps=0)
