"""Heads of a size that attention pads: right, and saved once.

PyTorch's attention on a GPU pads heads whose size is no multiple of 8, and saves what it padded. An
attention function that pads in the same way shows it on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memo_train.runtime._padded import padded_from
from memo_train.testing import assert_as_exact_as_plain, float64_step, run_step
from tests.runtime.policies import force, step_of_all, wrapped_of

SIZES = (12, 20, 36, 100)


def pads_heads(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """As aten's pad_last_dim<8> around a kernel, and Transformers around both."""
    size = query.shape[-1]
    qkv = [F.pad(tensor, (0, -size % 8)) for tensor in (query, key, value)]
    o = F.scaled_dot_product_attention(*qkv, is_causal=True, scale=scaling, enable_gqa=True)
    return o[..., :size].transpose(1, 2).contiguous(), None


@pytest.fixture(params=["sdpa", "pads_heads"])
def implementation(request, monkeypatch) -> Iterator[str]:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "pads_heads", pads_heads)
    return request.param


def make(size: int, implementation: str) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=size,
        attn_implementation=implementation,
    )
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(config).train()


@pytest.mark.parametrize("size", SIZES)
def test_every_policy_is_as_exact_as_plain(size, implementation, ids, wrapped) -> None:
    """Levels 3 and 4."""
    batch = {"input_ids": ids, "labels": ids}
    step = step_of_all(wrapped(make(size, implementation)), 8, **batch)
    plain = run_step(make(size, implementation), **batch)
    assert_as_exact_as_plain(step, plain, float64_step(make(size, implementation), **batch))


@pytest.mark.parametrize("size", SIZES)
def test_attention_saves_its_sums_alone(size, implementation, ids, wrapped) -> None:
    """Level 2: the log-sum-exp, fp32 [batch, heads, tokens], and no q, k, v or o once more."""
    model = force(wrapped(make(size, implementation)), "keep", 8)
    loss = model(input_ids=ids, labels=ids).loss
    saved = wrapped_of(model).last_pass().saved_bytes()
    assert saved.attention == ids.shape[0] * 4 * ids.shape[1] * 4
    loss.backward()


def test_what_only_looks_padded_is_none() -> None:
    q = torch.randn(2, 4, 5, 12)
    padded = F.pad(q, (0, 4))
    found = padded_from(padded, {"q": q})
    assert found is not None
    assert torch.equal(found.made(q.untyped_storage()), padded)
    other, behind = padded.clone(), padded.clone()
    other[1, 2, 3, 4] += 1
    behind[1, 2, 3, 15] = 1
    for tensor in (other, behind, F.pad(q, (0, 16)), padded.double(), F.pad(q, (1, 3))):
        assert padded_from(tensor, {"q": q}) is None
    turned = q.transpose(1, 2).contiguous()
    found = padded_from(padded, {"o": turned})
    assert found is not None
    assert torch.equal(found.made(turned.untyped_storage()), padded)
