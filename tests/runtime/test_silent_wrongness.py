"""Blocks that would train wrongly without a word: tiled and right, or whole and said so."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import memo_train
from memo_train.errors import LostGradient
from memo_train.runtime import HowToRun
from memo_train.testing import (
    assert_as_exact_as_plain,
    float64_step,
    gradients_of,
    run_step,
)
from tests.runtime import odd_blocks, toy
from tests.runtime.policies import POLICIES, force, step_of_all, wrapped_of

TILE_TOKENS = 8

TILED = {
    "writes .grad itself": odd_blocks.ShardedBlock,
    "x on ctx": odd_blocks.InputOnCtxBlock,
    "o on ctx": odd_blocks.OutputOnCtxBlock,
    "keys on a class": odd_blocks.KeysOnModuleBlock,
    "conjugated and negated": odd_blocks.ConjugatedBlock,
    "expanded": odd_blocks.ExpandedBlock,
    "subclass": odd_blocks.TaggedBlock,
    "counters": odd_blocks.CountingBlock,
}

WHOLE = {
    "injected loss": (odd_blocks.InjectedLossBlock, "a loss by itself"),
    "running mean": (odd_blocks.AveragingBlock, "leaves another value on `mean`"),
}


def make(block: Callable[[], nn.Module]) -> nn.Module:
    return toy.toy(block).train()


def assert_right(model: nn.Module, block: Callable[[], nn.Module], ids: torch.Tensor) -> None:
    batch = {"input_ids": ids, "labels": ids}
    step = step_of_all(model, TILE_TOKENS, **batch)
    plain, exact = run_step(make(block), **batch), float64_step(make(block), **batch)
    assert_as_exact_as_plain(step, plain, exact)


@pytest.mark.parametrize("name", TILED)
def test_tiled_and_right(name: str, ids, wrapped) -> None:
    """Levels 3 and 4."""
    model = wrapped(make(TILED[name]))
    assert {v.how for v in wrapped_of(model).verdicts} == {HowToRun.TILED}
    assert_right(model, TILED[name], ids)
    odd_blocks.KeysOnModuleBlock.last_keys = None  # a class outlives its test


@pytest.mark.parametrize("name", WHOLE)
def test_whole_and_right(name: str, ids, wrapped) -> None:
    """Levels 3 and 4."""
    block, why = WHOLE[name]
    with pytest.warns(UserWarning, match=rf"blocks 0, 1, 2 are checkpointed.*{why}"):
        model = wrapped(make(block))
    assert_right(model, block, ids)


def test_attention_that_holds_its_inputs_on_ctx(ids, wrapped) -> None:
    with odd_blocks.attention_on_ctx():
        assert_right(wrapped(make(toy.ToyBlock)), toy.ToyBlock, ids)


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_written_by_a_function_accumulate(policy: str, ids, wrapped) -> None:
    model, plain = wrapped(make(odd_blocks.ShardedBlock), policy), make(odd_blocks.ShardedBlock)
    for _ in range(2):
        for run in (model, plain):
            run(input_ids=ids, labels=ids).loss.backward()
    expected = gradients_of(plain)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("block", [odd_blocks.LeftLossBlock, odd_blocks.ListedLossBlock])
def test_a_loss_left_on_a_module_is_of_the_whole_sequence(block, policy, ids, wrapped) -> None:
    def step(model: nn.Module) -> tuple[dict[str, torch.Tensor], int]:
        loss = model(input_ids=ids, labels=ids).loss
        for each in model.base_model.blocks:
            losses = each.losses if hasattr(each, "losses") else [each.aux_loss]
            loss = loss + sum(losses)
        loss.backward()
        return gradients_of(model), len(losses)

    with pytest.warns(UserWarning, match="leaves a tensor that requires a gradient on `"):
        model = wrapped(make(block), policy)
    found, num_losses = step(model)
    expected, _ = step(make(block))
    assert num_losses == 1
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_counters_count_each_token_once(policy: str, ids, wrapped) -> None:
    """Neither wrap nor planning nor recomputation counts."""
    model, plain = wrapped(make(odd_blocks.CountingBlock), policy), make(odd_blocks.CountingBlock)
    memo_train.unwrap(model)
    for run in (force(memo_train.wrap(model), policy, TILE_TOKENS), plain):
        run(input_ids=ids, labels=ids).loss.backward()
    for ours, theirs in zip(model.base_model.blocks, plain.base_model.blocks, strict=True):
        assert ours.tokens == ids.numel()
        assert ours.num_tokens == ids.numel()
        assert torch.equal(ours.load, theirs.load)


def test_counters_of_a_planned_step(ids) -> None:
    model = memo_train.wrap(make(odd_blocks.CountingBlock))
    model(input_ids=ids, labels=ids).loss.backward()
    for block in model.base_model.blocks:
        assert (block.tokens, block.num_tokens) == (ids.numel(), ids.numel())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_parameter_held_in_a_closure_runs_whole(policy: str, ids, wrapped) -> None:
    def closed() -> nn.Module:
        model = make(odd_blocks.ClosedOverBlock)
        for block in model.base_model.blocks:
            block.close_over()
        return model

    with pytest.warns(UserWarning, match="neither its input nor its own parameters"):
        model = wrapped(closed(), policy)
    step = run_step(model, input_ids=ids, labels=ids)
    plain = run_step(closed(), input_ids=ids, labels=ids)
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(step.gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_gradient_lost_after_wrap_is_an_error_that_names_the_parameter(
    policy: str, ids, wrapped
) -> None:
    model = wrapped(make(odd_blocks.ClosedOverBlock), policy)
    model.base_model.blocks[1].close_over()
    with pytest.raises(LostGradient, match=r"ClosedOverBlock: parameter mlp\.1\.weight \(48, 32\)"):
        run_step(model, input_ids=ids, labels=ids)


@pytest.mark.filterwarnings("ignore:.*the loss is not tiled:UserWarning")
def test_a_block_that_is_not_the_same_twice_runs_as_it_is(ids) -> None:
    with pytest.warns(UserWarning, match="run as they are.*checkpointed, "):
        model = memo_train.wrap(make(odd_blocks.FirstRunBlock), alpha=0.5)
    assert {v.how for v in wrapped_of(model).verdicts} == {HowToRun.PLAIN}


@pytest.mark.parametrize("policy", POLICIES)
def test_parameters_of_a_functional_call(policy: str, ids, wrapped) -> None:
    """Level 4: they are out of place again when backward runs."""
    model = wrapped(make(toy.ToyBlock), policy)
    other = {n: (2 * p).detach().requires_grad_() for n, p in model.named_parameters()}
    batch = {"input_ids": ids, "labels": ids}
    torch.func.functional_call(model, other, (), batch).loss.backward()
    plain = make(toy.ToyBlock)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(other[name])
    expected = run_step(plain, **batch).gradients
    for name, tensor in other.items():
        torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_the_probe_leaves_gradients_modes_buffers_and_random_numbers(ids) -> None:
    model = make(odd_blocks.CountingBlock)
    model.base_model.blocks[1].eval()
    run_step(model, input_ids=ids, labels=ids)
    held = {n: (p.grad, p.grad.clone()) for n, p in model.named_parameters()}
    state = {n: b.clone() for n, b in model.named_buffers()}
    modes, calls = [m.training for m in model.modules()], []
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: calls.append(1))
    stream = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memo_train.wrap(model)
    assert torch.equal(torch.get_rng_state(), stream)
    assert [m.training for m in model.modules()] == modes
    assert not calls
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, state[name]), name
    for name, parameter in model.named_parameters():
        gradient, values = held[name]
        assert parameter.grad is gradient
        assert torch.equal(gradient, values), name


@pytest.mark.parametrize("policy", POLICIES)
def test_tensors_left_in_an_argument_are_of_the_whole_sequence(policy: str, ids, wrapped) -> None:
    """Level 4: keys that later blocks share, say."""

    def sharing() -> nn.Module:
        return toy.toy(odd_blocks.SharingBlock, odd_blocks.SharingDecoder)

    with pytest.warns(UserWarning, match="it leaves tensors in its arguments"):
        model = wrapped(sharing(), policy)
    batch = {"input_ids": ids, "labels": ids}
    plain, exact = run_step(sharing(), **batch), float64_step(sharing(), **batch)
    assert_as_exact_as_plain(run_step(model, **batch), plain, exact)
