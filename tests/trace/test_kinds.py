"""Models whose blocks differ, and steps with a mask: planned for what takes most (level 2)."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

import memo_train
from memo_planner import PlanInfeasible
from memo_train.trace._profile import kinds_of
from tests.runtime.policies import wrapped_of

torch.set_num_threads(1)
TOKENS = 1200


def peaks(model: nn.Module, **more: Any) -> tuple[int, int]:
    """Bytes predicted, and most bytes of a step that finds no gradients, above the parameters."""
    ids = torch.randint(1, 60, (1, TOKENS))
    gc.collect()
    memo_train.reset_stats()
    before = memo_train.stats().device_used_bytes
    model(input_ids=ids, labels=ids, **more).loss.backward()
    peak = memo_train.stats().device_peak_bytes - before
    model.zero_grad()
    return memo_train.plan(model).prediction.device_peak_bytes, peak


def test_experts_after_a_dense_block_are_a_kind_of_their_own() -> None:
    torch.manual_seed(1)
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61}
    groups = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "pad_token_id": 0}
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**experts, **sizes, **heads, **groups))
    memo_train.wrap(model, alpha=0.0, tile_tokens=128)
    kinds = [(kind.index, kind.num_blocks) for kind in kinds_of(wrapped_of(model))]
    assert kinds == [(0, 1), (1, 2)]
    predicted, peak = peaks(model)
    assert peak <= predicted
    memo_train.unwrap(model)


def make_llama() -> nn.Module:
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=61, **sizes, **heads))


@pytest.mark.parametrize("how", ["padded", "packed"])
def test_a_mask_over_all_pairs_of_tokens_is_counted(how: str) -> None:
    model = make_llama()
    memo_train.wrap(model, alpha=0.0, tile_tokens=128)
    whole = torch.arange(TOKENS)[None]
    more = {
        "padded": {"attention_mask": (whole > 60).long()},
        "packed": {"position_ids": whole % (TOKENS // 2)},
    }[how]
    without, _ = peaks(model)
    predicted, peak = peaks(model, **more)
    assert predicted - without > 4 * TOKENS**2
    assert peak <= predicted
    memo_train.unwrap(model)


def test_a_mask_that_does_not_fit_is_refused_before_the_step() -> None:
    model = make_llama()
    memo_train.wrap(model, alpha=0.0, tile_tokens=128, device_gib=9 / 1024)
    mask = (torch.arange(TOKENS)[None] > 60).long()
    ids = torch.randint(1, 60, (1, TOKENS))
    with pytest.raises(PlanInfeasible, match="masks and scores over all pairs of 1,200 tokens"):
        model(input_ids=ids, labels=ids, attention_mask=mask)
    memo_train.unwrap(model)


def test_what_attention_and_mlp_share_is_kept_once() -> None:
    """Phi's MLP reads the norm that q, k and v read: a kept tile has it once."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 8}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attention_dropout"), 0.0)
    heads = {"num_attention_heads": 4, "vocab_size": 61, "pad_token_id": 0}
    model = PhiForCausalLM(PhiConfig(**sizes, **heads, **dropouts)).train()
    memo_train.wrap(model, seq_len=TOKENS)
    (kind,) = memo_train.plan(model).profile.kinds
    assert kind.tiles.shared_bytes_per_token == 4 * 64
    assert all(block.keep_tiles for block in memo_train.plan(model).policy.blocks)
    predicted, peak = peaks(model)
    state = memo_train.plan(model).profile.state_bytes
    parameters = sum(p.nbytes for p in model.parameters())
    # The plan's state has the moments, which are not here; gradients count where they are made.
    assert peak <= predicted - parameters
    assert predicted - state <= 1.05 * peak
    memo_train.unwrap(model)
    memo_train.wrap(llama := make_llama(), seq_len=TOKENS)
    (kind,) = memo_train.plan(llama).profile.kinds
    assert kind.tiles.shared_bytes_per_token == 0
    memo_train.unwrap(llama)
