"""A wrapped model keeps autograd's rules: hooks, one backward per forward, versions."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from memo_train.errors import BackwardTwice, DoubleBackward
from memo_train.testing import Step, assert_same_bits, gradients_of, run_step
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import POLICIES, force

# Hooks and second backwards ask for memory that no layout knows. Whether the layout of the step
# before is solved in time, and so departed from, depends on what else the machine does.
pytestmark = pytest.mark.filterwarnings("ignore:a step of .* did not go as its layout planned")

HOOKS = ["register_hook", "register_post_accumulate_grad_hook"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("tied", [False, True])
def test_parameter_hooks_fire_once_a_step(hook: str, policy: str, tied: bool, ids, wrapped) -> None:
    model = wrapped(MODELS["llama_gqa"](tie_word_embeddings=tied), policy)
    calls: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        getattr(parameter, hook)(lambda _, name=name: calls.update([name]))
    for step in (1, 2):
        run_step(model, input_ids=ids, labels=ids)
        assert calls == {name: step for name, _ in model.named_parameters()}


def test_a_hook_that_changes_the_gradient_is_obeyed(ids, wrapped) -> None:
    model = wrapped(MODELS["own"]())
    plain = run_step(model, input_ids=ids, labels=ids)
    weight = model.model.blocks[1].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient * 2)
    doubled = run_step(model, input_ids=ids, labels=ids)
    name = "model.blocks.1.mlp.up_proj.weight"
    assert torch.equal(doubled.gradients[name], plain.gradients[name] * 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_second_backward_is_refused_and_the_next_step_right(policy: str, ids, wrapped) -> None:
    model = wrapped(MODELS["llama"](), policy)
    good = run_step(model, input_ids=ids, labels=ids)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward(retain_graph=True)
    with pytest.raises(BackwardTwice, match="second time"):
        loss.backward()
    logits = model(ids).logits
    own_loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    own_loss.backward(retain_graph=True)
    with pytest.raises(BackwardTwice, match="second time"):
        own_loss.backward()
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), good)


def test_a_double_backward_is_refused(ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]())
    weight = model.model.layers[0].mlp.up_proj.weight
    loss = model(input_ids=ids, labels=ids).loss
    with pytest.raises(DoubleBackward, match="create_graph=True through a wrapped model"):
        torch.autograd.grad(loss, weight, create_graph=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_optimizer_step_before_backward_is_noticed(policy: str, ids, wrapped) -> None:
    model = wrapped(MODELS["llama"](), policy)
    run_step(model, input_ids=ids, labels=ids)
    loss = model(input_ids=ids, labels=ids).loss
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("which", ["layers.1", "layers.1.mlp.down_proj", "norm", "lm_head"])
def test_so_is_a_write_to_a_part(which: str, policy: str, ids, wrapped) -> None:
    """Or it does no harm: the head's gradients are taken in forward."""
    model = wrapped(MODELS["llama"](), policy)
    good = run_step(model, input_ids=ids, labels=ids)
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids).loss
    part = model.lm_head if which == "lm_head" else model.model.get_submodule(which)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(1.0)
    if which == "lm_head":
        loss.backward()
        assert_same_bits(Step(loss=loss.detach(), gradients=gradients_of(model)), good)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_of_some_parameters_only(policy: str, ids, wrapped) -> None:
    """torch.autograd.grad leaves .grad alone and gives the same numbers."""
    model = wrapped(MODELS["llama"](), policy)
    whole = run_step(model, input_ids=ids, labels=ids)
    model.zero_grad(set_to_none=True)
    names = ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"]
    parameters = dict(model.named_parameters())
    loss = model(input_ids=ids, labels=ids).loss
    found = torch.autograd.grad(loss, [parameters[name] for name in names])
    for name, gradient in zip(names, found, strict=True):
        assert torch.equal(gradient, whole.gradients[name])
    assert all(p.grad is None for p in parameters.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_forward_without_backward_leaves_nothing(policy: str, ids, wrapped, device) -> None:
    model = wrapped(MODELS["llama"](), policy)
    good = run_step(model, input_ids=ids, labels=ids)
    loss = model(input_ids=ids, labels=ids).loss
    del loss
    assert device.counters().host_used_bytes == 0
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), good)


def test_gradients_accumulate_into_what_is_there(ids, wrapped) -> None:
    model = wrapped(MODELS["own"]())
    once = run_step(model, input_ids=ids, labels=ids)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, once.gradients[name] * 2), name


def test_policies_may_change_from_step_to_step(ids, wrapped) -> None:
    model = wrapped(MODELS["own"](), "keep")
    keep = run_step(model, input_ids=ids, labels=ids)
    for policy in (*POLICIES, *reversed(POLICIES)):
        assert_same_bits(run_step(force(model, policy, 8), input_ids=ids, labels=ids), keep)
