"""Attention by groups of heads: not a bit changes, and what cannot be cut runs whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

import memo_train
from memo_planner.errors import InvalidInput
from memo_train.device import CpuDevice
from memo_train.runtime import HowToRun
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    float64_step,
    run_step,
)
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import POLICIES, force, wrapped_of
from tests.runtime.small_llama import own_llama

TILE_TOKENS = 8


def step_in_groups(model: nn.Module, batch: dict[str, Any], num_groups: int) -> Step:
    """The step of every policy in that many groups, the same bits as attention whole."""
    whole = run_step(force(model, "keep", TILE_TOKENS), **batch)
    for policy in POLICIES:
        for free_bytes in (0, 2**40):
            force(model, policy, TILE_TOKENS, free_bytes, num_groups)
            assert_same_bits(run_step(model, **batch), whole)
    return whole


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [((4, 4), torch.float32), ((4, 2), torch.float32), ((4, 2), torch.bfloat16)],
    ids=["own heads", "shared heads", "bfloat16"],
)
def test_no_bit_changes(ids: Tensor, heads: tuple[int, int], dtype: torch.dtype) -> None:
    """Numerics level 3: keep, swap and recompute, with memory for copies and without."""
    model = own_llama(num_heads=heads[0], num_kv_heads=heads[1]).to(dtype)
    memo_train.wrap(model, alpha=0.5)
    assert wrapped_of(model).num_groups == heads[1]
    for num_groups in {2, heads[1]}:
        step_in_groups(model, {"input_ids": ids, "labels": ids}, num_groups)


def causal_mask(heads: int, tokens: int) -> Tensor:
    """[2, heads, tokens, tokens]; with more than one head a slope for each, as ALiBi has it."""
    ago = torch.arange(tokens)[:, None] - torch.arange(tokens)
    slopes = torch.arange(heads).float()[:, None, None] / 8
    return (-slopes * ago).masked_fill(ago < 0, -1e9)[None].expand(2, -1, -1, -1).contiguous()


@pytest.mark.parametrize("heads", [1, 4], ids=["for all heads", "for each head"])
def test_masks_are_cut_along(ids: Tensor, heads: int) -> None:
    """Numerics levels 3 and 4."""
    model = MODELS["llama_gqa"]()
    mask = causal_mask(heads, ids.shape[1])
    batch = {"input_ids": ids, "labels": ids, "attention_mask": mask}
    plain, exact = run_step(model, **batch), float64_step(model, **batch)
    memo_train.wrap(model, alpha=0.5)
    groups = wrapped_of(model).num_groups
    assert groups > 1
    assert_as_exact_as_plain(step_in_groups(model, batch, groups), plain, exact)


def test_memory_at_the_peak_falls(device: CpuDevice) -> None:
    """At the peak q, k, v, o and their gradients are of one group."""
    long = torch.randint(1, 61, (1, 2048), generator=torch.Generator().manual_seed(3))
    model = memo_train.wrap(own_llama(num_kv_heads=4, hidden_size=64), alpha=0.5)
    peaks = []
    for num_groups in (1, 4):
        force(model, "recompute", 128, 0, num_groups)
        before = device.counters().device_used_bytes
        device.reset_peak()
        run_step(model, input_ids=long, labels=long)
        peaks.append(device.counters().device_peak_bytes - before)
    whole_bytes = 2048 * 64 * 4
    assert peaks[0] - peaks[1] > 4 * whole_bytes


def heads_mixed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """A gate of zero lets no head into another; it would, were it opened."""
    o = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    o = o + 0.0 * o.mean(1, keepdim=True)
    return o.transpose(1, 2).contiguous(), None


def with_sinks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    sinks: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """One number for each head that takes part in its softmax, as the module's attribute."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    tokens = query.shape[2]
    scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -1e9)
    sink = torch.linspace(0, 1, query.shape[1]) if sinks is None else sinks
    sink = sink.to(query.dtype)[None, :, None, None].expand(query.shape[0], -1, tokens, 1)
    shares = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    return (shares @ value).transpose(1, 2).contiguous(), None


@pytest.mark.parametrize(
    ("attention", "why"), [(heads_mixed, "meet"), (with_sinks, "another attention output")]
)
def test_what_cannot_be_cut_runs_whole(
    ids: Tensor, attention: Callable[..., Any], why: str
) -> None:
    AttentionInterface.register("uncut_for_this_test", attention)
    model = MODELS["llama_gqa"]()
    model.config._attn_implementation = "uncut_for_this_test"
    batch = {"input_ids": ids, "labels": ids}
    memo_train.wrap(model, alpha=0.5)
    wrapped = wrapped_of(model)
    verdict = wrapped.verdicts[0]
    assert verdict.how is HowToRun.TILED
    assert verdict.heads is None
    assert why in str(verdict.heads_meet)
    assert wrapped.num_groups == 1
    # A plan in groups, made for other blocks, runs this one whole.
    step_in_groups(model, batch, 2)


def test_dropout_in_attention_runs_whole() -> None:
    model = MODELS["llama_gqa"]()
    for block in model.model.layers:
        block.self_attn.attention_dropout = 0.1
    memo_train.wrap(model, alpha=0.5)
    verdict = wrapped_of(model).verdicts[0]
    assert (verdict.how, verdict.heads) == (HowToRun.TILED, None)
    assert "random numbers" in str(verdict.heads_meet)


def test_a_count_that_does_not_divide_the_heads_is_refused(ids: Tensor) -> None:
    model = memo_train.wrap(own_llama(), alpha=0.5)
    force(model, "swap", TILE_TOKENS, num_groups=3)
    with pytest.raises(InvalidInput, match=r"num_groups is 3.*2 key-value heads"):
        model(input_ids=ids, labels=ids)
