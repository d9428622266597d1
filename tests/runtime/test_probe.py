"""Blocks that cannot be tiled are found, said so, and still trained right."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import transformers
from torch import nn

import memo_train
from memo_planner.policy import TilePlace
from memo_train.device import device_of
from memo_train.runtime import AtCut, HowToRun, find_parts, probe_model
from memo_train.runtime._block import BlockBackward
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    float64_step,
    gradients_of,
    run_step,
)
from tests.runtime import toy
from tests.runtime.policies import POLICIES, force, step_of_all, wrapped_of

TILE_TOKENS = 8
Make = Callable[[], nn.Module]


def mixtral() -> nn.Module:
    torch.manual_seed(1)
    config = transformers.MixtralConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=128,
        experts_implementation="eager",
    )
    return transformers.MixtralForCausalLM(config).train()


TILED: dict[str, tuple[Make, AtCut]] = {
    "toy": (lambda: toy.toy(toy.ToyBlock), AtCut.RELEASE),
    "parallel": (lambda: toy.toy(toy.ParallelBlock), AtCut.RELEASE),
    "query gated": (lambda: toy.toy(toy.QueryGatedBlock), AtCut.HOLD),
    "fused gate": (lambda: toy.toy(toy.FusedGateBlock), AtCut.HOLD),
    "conditioned": (lambda: toy.toy(toy.ConditionedBlock, toy.ConditionedDecoder), AtCut.RELEASE),
    "chosen kernel": (lambda: toy.toy(toy.ChosenKernelBlock), AtCut.RELEASE),
    "repeated": (toy.repeated, AtCut.RELEASE),
    "mixture of experts": (mixtral, AtCut.RELEASE),
}

MIXES = "tokens mix outside attention"
FOREIGN = "neither its input nor its own parameters"
WHOLE: dict[str, tuple[Make, str]] = {
    "convolution": (lambda: toy.toy(toy.OpenConvolutionBlock), MIXES),
    "gated convolution": (lambda: toy.toy(toy.ConvolutionBlock), MIXES),
    "far convolution": (lambda: toy.toy(toy.FarConvolutionBlock), MIXES),
    "batch norm": (lambda: toy.toy(toy.BatchNormBlock), MIXES),
    "no attention": (lambda: toy.toy(toy.NoAttentionBlock), "no attention call"),
    "own mask": (lambda: toy.toy(toy.OwnMaskBlock), "part of the tokens"),
    "two attention calls": (lambda: toy.toy(toy.TwoAttentionsBlock), "two attention calls"),
    "in place": (lambda: toy.toy(toy.InPlaceBlock), "writes to its input"),
    "two outputs": (lambda: toy.toy(toy.TwoOutputsBlock, toy.TwoOutputsDecoder), "more tensors"),
    "second input": (lambda: toy.toy(toy.FromEmbeddingBlock, toy.FromEmbeddingDecoder), FOREIGN),
    "borrowed parameters": (toy.borrowing, FOREIGN),
}


def check(make: Make, model: nn.Module, ids: torch.Tensor) -> None:
    batch = {"input_ids": ids, "labels": ids}
    step = step_of_all(model, TILE_TOKENS, **batch)
    plain, exact = run_step(make(), **batch), float64_step(make(), **batch)
    assert_as_exact_as_plain(step, plain, exact)


@pytest.mark.parametrize("name", TILED)
def test_token_wise_blocks_are_tiled(name: str, ids, wrapped) -> None:
    make, at_cut = TILED[name]
    model = wrapped(make())
    for verdict in wrapped_of(model).verdicts:
        assert (verdict.how, verdict.at_cut) == (HowToRun.TILED, at_cut)
    check(make, model, ids)


@pytest.mark.parametrize("name", WHOLE)
def test_others_are_run_whole_and_it_is_said(name: str, ids, wrapped) -> None:
    make, reason = WHOLE[name]
    with pytest.warns(UserWarning, match=rf"blocks 0, 1, 2 are .*not tiled: .*{reason}"):
        model = wrapped(make())
    check(make, model, ids)


@pytest.mark.filterwarnings("ignore:.*the loss is not tiled:UserWarning")
def test_a_closed_gate_does_not_hide_mixing_in_bf16(ids, wrapped) -> None:
    with pytest.warns(UserWarning, match=MIXES):
        wrapped(toy.toy(toy.ConvolutionBlock).bfloat16())


def test_some_blocks_of_a_model(ids, wrapped) -> None:
    """One block of three mixes tokens: it alone is run whole."""

    def make() -> nn.Module:
        model = toy.toy(toy.ConvolutionBlock)
        for index in (0, 2):
            block = model.base_model.blocks[index]
            block.forward = toy.ToyBlock.forward.__get__(block)
        return model

    with pytest.warns(UserWarning, match="blocks 1 are"):
        model = wrapped(make())
    for name in ("keep", "mixed"):
        step = run_step(force(model, name, TILE_TOKENS), input_ids=ids, labels=ids)
    plain = run_step(make(), input_ids=ids, labels=ids)
    exact = float64_step(toy_with_plain_outer_blocks(), input_ids=ids, labels=ids)
    assert_as_exact_as_plain(step, plain, exact)


def toy_with_plain_outer_blocks() -> nn.Module:
    """As the model above, with the two blocks' own forwards made after a copy of theirs."""
    model = toy.toy(toy.ConvolutionBlock)
    for index in (0, 2):
        model.base_model.blocks[index].__class__ = _ClosedBlock
    return model


class _ClosedBlock(toy.ConvolutionBlock):
    def forward(self, x, *args):
        return toy.ToyBlock.forward(self, x)


@pytest.mark.parametrize("tile_tokens", [1, 8])
def test_an_argument_as_long_as_the_sequence_by_chance(tile_tokens: int, ids, wrapped) -> None:
    """A vector of `hidden` numbers at a length of `hidden` tokens is not cut."""
    make, _ = TILED["conditioned"]
    batch = {"input_ids": ids[:, : toy.HIDDEN], "labels": ids[:, : toy.HIDDEN]}
    step = run_step(wrapped(make(), "mixed", tile_tokens), **batch)
    assert_as_exact_as_plain(step, run_step(make(), **batch), float64_step(make(), **batch))


def test_kernels_allowed_are_left_as_they_were(ids, wrapped) -> None:
    model = wrapped(toy.toy(toy.ChosenKernelBlock))
    for policy in POLICIES:
        run_step(force(model, policy, TILE_TOKENS), input_ids=ids, labels=ids)
        flags = torch.backends.cuda
        assert flags.flash_sdp_enabled()
        assert flags.mem_efficient_sdp_enabled()
        assert flags.math_sdp_enabled()


def test_attention_outside_of_autocast(ids, wrapped) -> None:
    """The block attends in fp32 under bf16 autocast, and every tile's post sees autocast again."""

    def run(model: nn.Module) -> Step:
        with torch.autocast("cpu", torch.bfloat16):
            return run_step(model, input_ids=ids, labels=ids)

    model = wrapped(toy.toy(toy.Float32AttentionBlock))
    steps = {p: run(force(model, p, TILE_TOKENS)) for p in POLICIES}
    for step in steps.values():
        assert_same_bits(step, steps["keep"])
    plain = run(toy.toy(toy.Float32AttentionBlock))
    exact = float64_step(toy.toy(toy.ToyBlock), input_ids=ids, labels=ids)
    assert_as_exact_as_plain(steps["keep"], plain, exact, dtype=torch.bfloat16)


def test_batch_norm_counts_each_step_once(ids) -> None:
    """The probe and the fallback leave running statistics as plain training does."""
    plain, model = toy.toy(toy.BatchNormBlock), toy.toy(toy.BatchNormBlock)
    with pytest.warns(UserWarning, match="not tiled"):
        memo_train.wrap(model, alpha=0.5)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(plain.named_buffers())[name]), name


def test_blocks_with_two_attention_calls_run_whole(ids) -> None:
    plain = run_step(toy.toy(toy.TwoAttentionsBlock), input_ids=ids, labels=ids)
    exact = float64_step(toy.toy(toy.TwoAttentionsBlock), input_ids=ids, labels=ids)
    model = toy.toy(toy.TwoAttentionsBlock)
    with pytest.warns(UserWarning, match=r"blocks 0, 1, 2 .*two attention calls; one per block"):
        memo_train.wrap(model)
    assert_as_exact_as_plain(run_step(model, input_ids=ids, labels=ids), plain, exact)


def test_unwrap_of_a_repeated_block(ids) -> None:
    model = toy.repeated()
    before = run_step(model, input_ids=ids, labels=ids)
    memo_train.unwrap(memo_train.wrap(model, alpha=0.0))
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), before)


def test_wrap_changes_neither_parameters_nor_random_numbers_nor_modes() -> None:
    model = mixtral()
    model.model.layers[1].eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    torch.manual_seed(5)
    stream = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memo_train.wrap(model)
    assert torch.equal(torch.get_rng_state(), stream)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[name]) for name, v in model.state_dict().items())
    assert not gradients_of(model)


@pytest.mark.parametrize("place", TilePlace)
@pytest.mark.parametrize("tile", [0, 1, 2])
def test_a_fault_of_one_way_is_found_in_nearly_every_tile(place, tile, monkeypatch) -> None:
    """Two of the three tiles are run in each way; a fault of it in either is seen."""
    own, met = BlockBackward._qkv, []

    def faulty(self, index, o_tiles):
        q, k, v = own(self, index, o_tiles)
        alike = self._state.tiles[index].place is place and self._state.spec.num_groups == 1
        if index == tile and alike:
            met.append(tile)
            v = v * 2
        return q, k, v

    monkeypatch.setattr(BlockBackward, "_qkv", faulty)
    model = toy.toy(toy.ToyBlock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        verdicts, _ = probe_model(find_parts(model), device_of(model.parameters()))
    tiled = verdicts[0].how is HowToRun.TILED
    never = {TilePlace.SWAP: 2, TilePlace.RECOMPUTE: 1, TilePlace.KEEP: 0}[place]
    assert tiled == (tile == never)
    assert bool(met) == (tile != never)


def test_the_probe_of_the_blocks_goes_by_the_head(monkeypatch) -> None:
    """A head of a large vocabulary takes longer than all of the blocks."""
    model, calls = toy.toy(toy.ToyBlock), []
    own = model.head.forward

    def forward(x):
        calls.append(x.shape)
        return own(x)

    monkeypatch.setattr(model.head, "forward", forward)
    probe_model(find_parts(model), device_of(model.parameters()))
    assert calls  # the loss's proof
    assert max(shape[:-1].numel() for shape in calls) <= 16
