"""What a user does to a model after `wrap`: honoured, or refused with the way out."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import memo_train
from memo_train.errors import CachedGeneration, UnsupportedModel
from memo_train.runtime import without_user_hooks
from memo_train.testing import (
    assert_as_exact_as_plain,
    assert_same_bits,
    float64_step,
    run_step,
)
from tests.runtime.causal_lms import MODELS

# peft asks by a name that transformers 5.24 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

Change = Callable[[nn.Module], object]


def train_last_block_only(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)


def double_a_blocks_output(model: nn.Module) -> None:
    model.model.layers[1].register_forward_hook(lambda module, args, output: 2 * output)


@pytest.mark.parametrize(
    ("change", "dtype"),
    [
        (lambda model: model.set_attn_implementation("eager"), torch.float32),
        (lambda model: model.to(torch.bfloat16), torch.bfloat16),
        (train_last_block_only, torch.float32),
        (double_a_blocks_output, torch.float32),
    ],
    ids=["attention", "dtype", "trained parameters", "hook on a block"],
)
def test_changes_that_are_honoured(change: Change, dtype: torch.dtype, ids) -> None:
    """And another plan is made: the bytes and seconds are others."""
    plain, model = MODELS["llama_gqa"](), MODELS["llama_gqa"]()
    memo_train.wrap(model, tile_tokens=8)
    memo_train.use_layouts(model, False)  # a hook's own requests are not the layout's
    run_step(model, input_ids=ids, labels=ids)
    change(plain)
    exact = float64_step(plain, input_ids=ids, labels=ids)
    change(model)
    ours = run_step(model, input_ids=ids, labels=ids)
    assert_as_exact_as_plain(ours, run_step(plain, input_ids=ids, labels=ids), exact, dtype=dtype)


def test_the_plan_follows_the_dtype(ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), tile_tokens=8)
    run_step(model, input_ids=ids, labels=ids)
    before = memo_train.plan(model).profile.x_bytes_per_token
    run_step(model.to(torch.bfloat16), input_ids=ids, labels=ids)
    assert memo_train.plan(model).profile.x_bytes_per_token == before / 2


def test_switching_there_and_back_keeps_what_was_proven(ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    good, plan = run_step(model, input_ids=ids, labels=ids), memo_train.plan(model)
    model.set_attn_implementation("eager")
    run_step(model, input_ids=ids, labels=ids)
    model.set_attn_implementation("sdpa")
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), good)
    assert memo_train.plan(model) is plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: peft.get_peft_model(model, peft.LoraConfig(r=2)), "were replaced, added"),
        (lambda model: model.resize_token_embeddings(70), "unwrap"),
        (lambda model: model.model.layers.append(model.model.layers[0]), "inside model.layers"),
        (lambda model: model.model.layers.__setitem__(0, nn.Identity()), "inside model.layers"),
        (lambda model: model.to("meta"), "was on cpu at wrap and is on meta"),
        (lambda model: model.register_parameter("scale", nn.Parameter(torch.ones(1))), "added"),
    ],
    ids=["adapters", "embeddings", "block added", "block replaced", "device", "parameter"],
)
def test_changes_that_are_refused(change: Change, message: str, ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    run_step(model, input_ids=ids, labels=ids)
    change(model)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        run_step(model, input_ids=ids, labels=ids)
    assert "unwrap(model), change it, and wrap it again" in str(caught.value)


def test_zero_stage_3_is_refused_unless_blocks_are_its_leaves(ids) -> None:
    """DeepSpeed marks the parameters that it has taken."""
    before, after = MODELS["llama"](), memo_train.wrap(MODELS["llama"](), alpha=0.5)
    for model in (before, after):
        weight = model.model.layers[0].mlp.up_proj.weight
        weight.ds_id, weight.data = 3, weight.new_empty(0)
    with pytest.raises(UnsupportedModel, match=r"ZeRO stage 3 .* before deepspeed\.initialize"):
        memo_train.wrap(before)
    with pytest.raises(UnsupportedModel, match=r"ZeRO stage 3 .*set_z3_leaf_modules\(model, \[Ll"):
        run_step(after, input_ids=ids, labels=ids)


def test_wrapping_what_stands_around_a_model() -> None:
    class DistributedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = MODELS["llama"]()

    with pytest.raises(UnsupportedModel, match=r"memo_train\.wrap\(model\.module\)"):
        memo_train.wrap(DistributedDataParallel())


def test_hooks_do_not_see_the_probe_and_the_profile(ids) -> None:
    """Each is called once a step, and keeps its place."""
    model, calls = MODELS["llama"](), []
    modules = (model, model.model, model.model.embed_tokens, model.model.layers[1])
    for module in modules:
        module.register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    memo_train.wrap(model, alpha=0.5)
    assert calls == []
    model.model.embed_tokens.register_forward_pre_hook(lambda *_: calls.append("pre"))
    run_step(model, input_ids=ids, labels=ids)
    expected = ["pre", "Embedding", "LlamaDecoderLayer", "LlamaModel", "LlamaForCausalLM"]
    assert calls == expected
    run_step(model, input_ids=ids, labels=ids)
    assert calls == 2 * expected


def test_library_hooks_stay_while_planning(ids) -> None:
    """Transformers' hook on the embeddings, without which nothing before the adapters trains."""
    model = MODELS["llama"]().requires_grad_(False)
    model.enable_input_require_grads()
    with without_user_hooks(model):
        assert model.get_input_embeddings()(ids).requires_grad


def test_a_block_called_by_itself_is_the_models_own(ids) -> None:
    plain, model = MODELS["gpt2"](), memo_train.wrap(MODELS["gpt2"](), alpha=0.5)
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        ours, theirs = (m.transformer.h[0](x) for m in (model, plain))
        assert torch.equal(ours[0], theirs[0])
        run_step(model, input_ids=ids, labels=ids)


def test_pickling_is_refused(ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5)
    with pytest.raises(UnsupportedModel, match=r"copied or pickled; call memo_train\.unwrap"):
        torch.save(model, io.BytesIO())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_around_the_model_is_refused(use_reentrant: bool, ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    good = run_step(model, input_ids=ids, labels=ids)

    def loss_of(scale: torch.Tensor) -> torch.Tensor:
        return scale * model(input_ids=ids, labels=ids).loss

    scale = torch.ones((), requires_grad=True)
    with pytest.raises(UnsupportedModel, match="called inside a backward"):
        checkpoint(loss_of, scale, use_reentrant=use_reentrant).backward()
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), good)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
@pytest.mark.parametrize("name", ["past_key_values", "cache", "anything"])
def test_caches_by_any_name(name: str, ids) -> None:
    from transformers import DynamicCache

    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    with pytest.raises(CachedGeneration, match=r"generate under torch\.no_grad\(\)"):
        model(input_ids=ids, **{name: DynamicCache()})
    with torch.no_grad():
        logits = model(input_ids=ids, **{name: DynamicCache()}).logits
        expected = MODELS["llama"]()(input_ids=ids, **{name: DynamicCache()}).logits
    assert torch.equal(logits, expected)


def test_a_configuration_that_asks_for_a_cache(ids) -> None:
    """The decoder has no `use_cache` to be told: its configuration is asked."""
    model = MODELS["llama"]()
    decoder, asked = model.model, []
    forward = decoder.forward

    def without_switch(input_ids: torch.Tensor, **kwargs: object) -> object:
        asked.append(model.config.use_cache)
        return forward(input_ids=input_ids, use_cache=model.config.use_cache)

    decoder.forward = without_switch
    memo_train.wrap(model, alpha=0.5, tile_tokens=8)
    run_step(model, input_ids=ids, labels=ids)
    assert set(asked) == {False}
    assert model.config.use_cache


def test_the_parts_of_a_model_that_are_told_apart() -> None:
    """A configuration that is no module's own does no harm."""
    model = MODELS["own"]()
    model.model.config = SimpleNamespace(use_cache=True)
    memo_train.wrap(model, alpha=0.5)
    assert model.model.config.use_cache
