"""Blocks that are cut at the module which mixes their tokens; levels 3 and 4 of the ladder."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn

import memo_train
from memo_train.errors import NotTokenWise
from memo_train.runtime import HowToRun
from memo_train.testing import assert_as_exact_as_plain, assert_same_bits, float64_step, run_step
from tests.runtime import mixer_blocks as blocks
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import POLICIES, force, step_of_all, wrapped_of
from tests.runtime.toy import ToyDecoder, toy

TILE_TOKENS = 8
Make = Callable[[], nn.Module]

TILED: dict[str, tuple[Make, str]] = {
    "recurrent": (lambda: toy(blocks.MixerBlock), "mixer"),
    "matrix products": (lambda: toy(blocks.ProductBlock), "mixer"),
    "two attention calls": (lambda: toy(blocks.TwiceAttendingBlock), "mixer"),
    "parallel": (lambda: toy(blocks.ParallelMixerBlock), "mixer"),
    "post norm": (lambda: toy(blocks.PostNormBlock), "mixer"),
    "scaled": (lambda: toy(blocks.ScaledBlock, blocks.ScaledDecoder), "mixer"),
    "made argument": (lambda: toy(blocks.MadeArgumentBlock), "mixer"),
    "inner": (lambda: toy(blocks.InnerMixerBlock), "mixer.inner"),
    "weights": (lambda: toy(blocks.WeightsBlock, blocks.WeightsDroppingDecoder), "mixer"),
    "own bias": (lambda: toy(blocks.BiasBlock), "mixer"),
    "several vectors a token": (lambda: toy(blocks.StackedBlock, blocks.StackedDecoder), "mixer"),
}
WHOLE: dict[str, tuple[Make, str]] = {
    "weights are used": (lambda: toy(blocks.WeightsBlock, blocks.WeightsUsingDecoder), "more"),
    "weights go on": (lambda: toy(blocks.WeightsBlock, blocks.WeightsPassingDecoder), "more"),
    "side by side": (lambda: toy(blocks.SideBySideBlock), "two attention calls"),
    "in a row": (lambda: toy(blocks.InARowBlock), "mix|two attention calls"),
    "called twice": (lambda: toy(blocks.CalledTwiceBlock), "no attention call"),
    "nothing else": (lambda: toy(blocks.NothingElseBlock), "no attention call"),
}


def check(make: Make, model: nn.Module, ids: torch.Tensor) -> None:
    batch = {"input_ids": ids, "labels": ids}
    step = step_of_all(model, TILE_TOKENS, **batch)
    plain, exact = run_step(make(), **batch), float64_step(make(), **batch)
    assert_as_exact_as_plain(step, plain, exact)


@pytest.mark.parametrize("name", TILED)
def test_blocks_are_cut_at_their_mixer(name: str, ids, wrapped) -> None:
    make, path = TILED[name]
    model = wrapped(make())
    for verdict in wrapped_of(model).verdicts:
        assert verdict.how is HowToRun.TILED, verdict.because
        assert verdict.mixer is not None
        assert verdict.mixer.path == path
    check(make, model, ids)


@pytest.mark.parametrize("name", WHOLE)
def test_others_are_run_whole(name: str, ids, wrapped) -> None:
    make, reason = WHOLE[name]
    with pytest.warns(UserWarning, match=rf"blocks 0, 1, 2 are .*not tiled: .*({reason})"):
        model = wrapped(make())
    check(make, model, ids)


def test_an_attention_call_goes_before_a_mixer(ids, wrapped) -> None:
    """Attention is never run again; a mixer is."""
    model = wrapped(MODELS["llama"]())
    assert all(verdict.mixer is None for verdict in wrapped_of(model).verdicts)


@pytest.mark.parametrize("policy", ["keep", "swap", "recompute"])
def test_dropout_in_a_mixer_is_plain_trainings(policy: str, ids, wrapped, monkeypatch) -> None:
    """It runs over all tokens at once, and again in backward with the same numbers."""
    monkeypatch.setattr(blocks.ProductMixer, "dropout", 0.3)
    batch = {"input_ids": ids, "labels": ids}
    step = run_step(wrapped(toy(blocks.ProductBlock), policy, TILE_TOKENS), **batch)
    plain = run_step(toy(blocks.ProductBlock), **batch)
    assert float((step.loss - plain.loss).abs()) < 1e-5
    for name, gradient in step.gradients.items():
        torch.testing.assert_close(gradient, plain.gradients[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_mixer_counts_each_step_once(policy: str, ids, wrapped) -> None:
    model = wrapped(toy(blocks.MixerBlock), policy, TILE_TOKENS)
    for _ in range(2):
        run_step(model, input_ids=ids, labels=ids)
    counts = {float(b.mixer.num_calls) for b in model.base_model.blocks}
    assert counts == {2.0}


def test_forwards_of_mixers_are_put_back(ids, wrapped) -> None:
    model = wrapped(toy(blocks.MixerBlock), "mixed", TILE_TOKENS)
    run_step(model, input_ids=ids, labels=ids)
    assert all("forward" not in vars(block.mixer) for block in model.base_model.blocks)


def test_weights_that_are_withheld_cannot_be_used_later(ids, wrapped) -> None:
    class Sometimes(blocks.WeightsDroppingDecoder):
        uses = False

        def call(self, block: nn.Module, x: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
            y, weights = block(x)
            return y * weights.mean() if self.uses else y

    model = wrapped(toy(blocks.WeightsBlock, Sometimes), "recompute", TILE_TOKENS)
    model.base_model.uses = True
    with pytest.raises(NotTokenWise, match=r"attention weights.*unwrap"):
        model(input_ids=ids, labels=ids)


def test_autocast_around_a_mixer(ids, wrapped) -> None:
    def run(model: nn.Module):
        with torch.autocast("cpu", torch.bfloat16):
            return run_step(model, input_ids=ids, labels=ids)

    model = wrapped(toy(blocks.ProductBlock))
    steps = {p: run(force(model, p, TILE_TOKENS)) for p in POLICIES}
    for step in steps.values():
        assert_same_bits(step, steps["keep"])
    exact = float64_step(toy(blocks.ProductBlock), input_ids=ids, labels=ids)
    plain = run(toy(blocks.ProductBlock))
    assert_as_exact_as_plain(steps["keep"], plain, exact, dtype=torch.bfloat16)


def test_padding_reaches_a_mixer(ids) -> None:
    """Masks that the probe did not see: whole ones for the mixer, on a hybrid of Transformers."""
    torch.manual_seed(1)
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4}
    config = transformers.Qwen3NextConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        experts_implementation="eager",
        pad_token_id=0,
        **sizes,
    )
    model = transformers.Qwen3NextForCausalLM(config).train()
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    batch = {"input_ids": ids, "labels": ids.masked_fill(mask == 0, -100), "attention_mask": mask}
    plain, exact = run_step(model, **batch), float64_step(model, **batch)
    memo_train.wrap(model, alpha=0.0, tile_tokens=TILE_TOKENS)
    paths = [v.mixer and v.mixer.path for v in wrapped_of(model).verdicts]
    assert paths == ["linear_attn", None]
    assert_as_exact_as_plain(run_step(model, **batch), plain, exact)
    memo_train.unwrap(model)


def test_plans_of_mixers_hold(device) -> None:
    """Level 2: the peak of a planned step is at most what the plan says, and less than whole's."""

    class WideBlock(blocks.MixerBlock):
        make_mixer = blocks.ProductMixer

        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(32, 1024), nn.GELU(), nn.Linear(1024, 32))

    ids = torch.arange(512)[None] % 61
    model = memo_train.wrap(toy(WideBlock, ToyDecoder), alpha=0.0, tile_tokens=32)
    for _ in range(2):
        memo_train.reset_stats()
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad(set_to_none=True)
    planned = memo_train.plan(model).prediction.device_peak_bytes
    measured = memo_train.stats().device_peak_bytes
    memo_train.unwrap(model)
    assert 0.85 * planned <= measured <= planned * 1.001
    hidden_bytes = 512 * 1024 * 4  # of the MLP, which never exists for all tokens
    assert measured < 512 * 512 * 4 * 4 * 8 + hidden_bytes


def test_nothing_is_said_of_blocks_that_are_cut(ids) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memo_train.unwrap(memo_train.wrap(toy(blocks.MixerBlock), tile_tokens=TILE_TOKENS))
