"""Objectives that use log-probabilities of labels: no logits exist whole, by the device's peak.

TRL's trainers take them from hidden states in tiles (its fused head), which stands around the
wrapped model; the decoder under it goes by the plan, and the head by tiles as a loss's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import memo_train
from memo_train.testing import assert_same_losses
from memo_train.trainer._label_tiles import label_tiles
from memo_train.wrap import planner_of
from tests.trainer.tiny import tiny_llama

trl = pytest.importorskip("trl")

TOKENS = 2048
WIDE = {"vocab_size": 4096, "max_position_embeddings": TOKENS}
LOGITS_BYTES = TOKENS * WIDE["vocab_size"] * 4


def step(model: Any, *, fused: bool) -> tuple[float, torch.Tensor, int]:
    """A DPO-like loss of one row, a gradient of it, and most device bytes beyond those before."""
    device = planner_of(model).wrapped.device
    ids = torch.arange(TOKENS)[None] * 7 % WIDE["vocab_size"]
    model.zero_grad()
    device.reset_peak()
    before = device.counters().device_used_bytes
    with label_tiles(planner_of(model), 512):
        if fused:
            log_probs = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
        else:
            logits = model(input_ids=ids).logits[:, :-1]
            log_probs = torch.gather(logits.log_softmax(-1), 2, ids[:, 1:, None])[..., 0]
            del logits
        loss = -torch.nn.functional.logsigmoid(0.001 * log_probs.sum() + 15)
        loss.backward()
    peak_bytes = device.counters().device_peak_bytes - before
    return float(loss.detach()), model.model.layers[0].mlp.up_proj.weight.grad.clone(), peak_bytes


def test_log_probabilities_of_labels_need_no_logits() -> None:
    """Level 6 for the loss; the gradient's sums are in another order."""
    first, model = (memo_train.wrap(tiny_llama(**WIDE), alpha=0.5, tile_tokens=512) for _ in "ab")
    expected, gradient, whole_bytes = step(first, fused=False)
    from trl.trainer.utils import add_fused_lm_head

    # Around the wrapped model, as memo_train.trl's trainers have it.
    add_fused_lm_head(model)
    found, ours, peak_bytes = step(model, fused=True)
    assert_same_losses([found], [expected])
    torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-7)
    assert whole_bytes > 2 * LOGITS_BYTES, f"{whole_bytes / LOGITS_BYTES:.2f} times the logits"
    assert peak_bytes < LOGITS_BYTES / 2, f"{peak_bytes / LOGITS_BYTES:.2f} times the logits"
