"""What reaches the attention call: whole masks and whole tables, though blocks run by tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import memo_train
from memo_train.runtime import HowToRun
from memo_train.testing import assert_as_exact_as_plain, float64_step, run_step
from tests.runtime import toy
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import POLICIES, force, step_of_all, wrapped_of


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As kernels for packed sequences do: documents are told apart by their positions."""
    assert attention_mask is None
    assert position_ids is not None
    assert position_ids.shape[-1] == query.shape[2], "positions of all tokens"
    document = (position_ids == 0).cumsum(-1)
    tokens = query.shape[2]
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask = mask & (document[:, None, :, None] == document[:, None, None, :])
    o = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return o.transpose(1, 2).contiguous(), None


@pytest.fixture
def packed_kernel() -> str:
    name = "packed_for_this_test"
    AttentionInterface.register(name, packed_attention)
    AttentionMaskInterface.register(name, lambda *args, **options: None)
    return name


def test_position_ids_reach_the_kernel_whole(packed_kernel: str, ids, wrapped) -> None:
    def make() -> nn.Module:
        model = MODELS["llama_gqa"]()
        model.config._attn_implementation = packed_kernel
        return model

    positions = torch.cat([torch.arange(20), torch.arange(17)])[None].expand(2, -1)
    batch = {"input_ids": ids, "labels": ids, "position_ids": positions}
    model = wrapped(make())
    step = step_of_all(model, 8, **batch)
    assert_as_exact_as_plain(step, run_step(make(), **batch), float64_step(make(), **batch))


class KeyMaskBlock(toy.ToyBlock):
    """Takes a mask of keys, [batch, tokens], and hands it to attention."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        self.mask = None if attention_mask is None else attention_mask[:, None, None, :]
        output: Tensor = super().forward(x)
        return output

    def attend(self, x: Tensor) -> Tensor:
        o = memo_train.attention(*self.heads(x), mask=self.mask, causal=self.mask is None)
        output: Tensor = self.out(o.transpose(1, 2).flatten(2))
        return output


class KeyMaskDecoder(toy.ToyDecoder):
    def call(self, block: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        first_tokens = torch.arange(x.shape[1]).expand(x.shape[0], -1) < 3
        mask = first_tokens | (embedded.detach()[..., 0] > 0)
        output: Tensor = block(x, attention_mask=mask)
        return output


def test_a_mask_of_keys_is_not_cut(ids, wrapped) -> None:
    def make() -> nn.Module:
        return toy.toy(KeyMaskBlock, KeyMaskDecoder)

    model = wrapped(make())
    assert {v.how for v in wrapped_of(model).verdicts} == {HowToRun.TILED}
    batch = {"input_ids": ids, "labels": ids}
    for policy in POLICIES:
        step = run_step(force(model, policy, 8), **batch)
        assert_as_exact_as_plain(step, run_step(make(), **batch), float64_step(make(), **batch))
