"""Kinds of model families: blocks of other forms, of several classes, in other places.

Every model is a tiny one of `benchmarks/tiny_configs.py`; level 4 of the numerics ladder.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import memo_train
from benchmarks.families import try_family
from benchmarks.tiny_configs import tiny_models
from memo_train.errors import UnsupportedModel
from memo_train.testing import assert_as_exact_as_plain, float64_step, run_step
from memo_train.wrap import planner_of
from tests.runtime import toy
from tests.runtime.causal_lms import MODELS


@pytest.mark.parametrize(
    ("family", "result"),
    [
        ("falcon", "tiled"),  # returns (y, attention weights)
        ("openai-gpt", "tiled"),  # returns a list, and so does its mixer
        ("bloom", "tiled"),  # attends by matrix products, with a bias of all tokens
        ("gpt_neox_japanese", "tiled"),  # its last mixer returns a bias
        ("deepseek_v4", "tiled"),  # several vectors of each token
        ("recurrent_gemma", "partly"),  # some mixers leave their state
        ("glm_moe_dsa", "whole"),  # hands top-k indices to the next block
        ("xlstm", "whole"),  # hands its state out
        ("llama4_text", "tiled"),  # `base_model` is the model itself
        ("opt", "tiled"),  # calls the decoder inside its `base_model`
        ("jamba", "tiled"),  # two classes of blocks, one without attention
        ("zamba2", "whole"),  # blocks with weights in common
        ("diffllama", "tiled"),  # two attention calls in a module
        ("granitemoe_swa", "tiled"),  # experts in a longer list than the blocks
        ("granitemoehybrid", "tiled"),  # makes a cache by its configuration
        ("phi4_multimodal", "tiled"),  # the largest list is an audio encoder's
        ("reformer", "whole"),  # its blocks are called by name, behind another argument
    ],
)
def test_families(family: str, result: str) -> None:
    tried = try_family(family)
    assert tried.result == result, tried


class TuplesDecoder(toy.ToyDecoder):
    """Blocks return (y,), as much remote code has them."""

    def call(self, block: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        output: Tensor = block(x)[0]
        return output


class TupleBlock(toy.ToyBlock):
    def forward(self, x: Tensor, *args: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


class TuplesLM(toy.ToyLM):
    decoder_class = TuplesDecoder


def test_blocks_that_return_tuples_are_planned(ids) -> None:
    plain = run_step(TuplesLM(TupleBlock), input_ids=ids, labels=ids)
    exact = float64_step(TuplesLM(TupleBlock), input_ids=ids, labels=ids)
    model = memo_train.wrap(TuplesLM(TupleBlock), tile_tokens=8)
    assert_as_exact_as_plain(run_step(model, input_ids=ids, labels=ids), plain, exact)


def only_the_last_block_trains() -> nn.Module:
    model = MODELS["llama"]().requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    return model


def test_training_the_last_block_only(ids) -> None:
    plain = run_step(only_the_last_block_trains(), input_ids=ids, labels=ids)
    exact = float64_step(only_the_last_block_trains(), input_ids=ids, labels=ids)
    model = memo_train.wrap(only_the_last_block_trains(), tile_tokens=8)
    assert_as_exact_as_plain(run_step(model, input_ids=ids, labels=ids), plain, exact)


class SkippedBlocksDecoder(toy.ToyDecoder):
    """Its list holds a block that is never called."""

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded = x = self.embed(input_ids)
        for block in list(self.blocks)[1:]:
            x = self.call(block, x, embedded)
        output: Tensor = self.norm(x)
        return output


class SkippedBlocksLM(toy.ToyLM):
    decoder_class = SkippedBlocksDecoder


def test_a_block_that_is_never_called(ids) -> None:
    plain = run_step(SkippedBlocksLM(toy.ToyBlock), input_ids=ids, labels=ids)
    exact = float64_step(SkippedBlocksLM(toy.ToyBlock), input_ids=ids, labels=ids)
    with pytest.warns(UserWarning, match="blocks 0 are run as they are.* does not call it"):
        model = memo_train.wrap(SkippedBlocksLM(toy.ToyBlock), tile_tokens=8)
    assert_as_exact_as_plain(run_step(model, input_ids=ids, labels=ids), plain, exact)


def test_a_model_that_does_not_run_is_refused_by_name() -> None:
    model = MODELS["llama"]()
    model.model.layers[1].self_attn.o_proj = nn.Linear(3, 32)
    with pytest.raises(UnsupportedModel, match=r"LlamaForCausalLM does not run on the few tokens"):
        memo_train.wrap(model)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("when", ["around", "inside", "before"])
def test_torch_compile(when: str, ids) -> None:
    plain = run_step(MODELS["llama"](), input_ids=ids, labels=ids)
    exact = float64_step(MODELS["llama"](), input_ids=ids, labels=ids)
    model, options = MODELS["llama"](), {"backend": "eager"}
    if when == "inside":
        for index, block in enumerate(model.model.layers):
            model.model.layers[index] = torch.compile(block, **options)
    called = torch.compile(model, **options) if when == "before" else model
    assert memo_train.wrap(called, tile_tokens=8, alpha=1.0) is called
    if when == "around":
        called = torch.compile(model, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo's own, about graph breaks
        step = run_step(called, input_ids=ids, labels=ids)
    named = {n.replace("_orig_mod.", ""): g for n, g in step.gradients.items()}
    ours = type(step)(loss=step.loss, gradients=named)
    assert_as_exact_as_plain(ours, plain, exact)
    assert planner_of(called).wrapped.tile_counts.total() > 0
    memo_train.unwrap(called)


@pytest.mark.usefixtures("measured_ahead")
@pytest.mark.parametrize("has_gradients", [False, True])
def test_what_is_run_to_be_measured_leaves_no_gradient(has_gradients: bool) -> None:
    """Reformer's backward runs backwards of its own, of all its blocks, whichever is measured."""
    model = next(iter(tiny_models("reformer")))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if has_gradients else None
    with pytest.warns(UserWarning, match="not tiled"):
        memo_train.wrap(model)
    for name, parameter in model.named_parameters():
        if has_gradients:
            assert torch.equal(parameter.grad, torch.ones_like(parameter)), name
        else:
            assert parameter.grad is None, name
