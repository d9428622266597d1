"""Calls of a wrapped model: what it refuses, and ways of calling it that must keep working."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import memo_train
from memo_train.errors import CachedGeneration, UnsupportedModel
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    gradients_of,
    run_step,
)
from tests.runtime.causal_lms import MODELS

# transformers 5.23 has another name for the switch; the old one works in all of 5.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")


@pytest.fixture
def wrapped_llama(wrapped) -> nn.Module:
    return wrapped(MODELS["llama"]())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"use_cache": True}, CachedGeneration),
        ({"past_key_values": transformers.DynamicCache()}, CachedGeneration),
        ({"output_attentions": True}, UnsupportedModel),
    ],
    ids=lambda value: str(value)[:24],
)
def test_calls_refused_while_wrapped(options, error, ids, wrapped_llama) -> None:
    good = run_step(wrapped_llama, input_ids=ids, labels=ids)
    with pytest.raises(error, match="unwrap"):
        wrapped_llama(ids, **options)
    assert_same_bits(run_step(wrapped_llama, input_ids=ids, labels=ids), good)


def test_generation(ids, wrapped_llama) -> None:
    """With a cache or without one it is the plain model's; steps after it are as before."""
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3, "do_sample": False}
    good = run_step(wrapped_llama, input_ids=ids, labels=ids)
    expected = MODELS["llama"]().eval().generate(ids, **options)
    wrapped_llama.eval()
    assert torch.equal(wrapped_llama.generate(ids, **options), expected)
    assert torch.equal(wrapped_llama.generate(ids, use_cache=False, **options), expected)
    with torch.no_grad():
        cache = wrapped_llama.model(ids, use_cache=True).past_key_values
    assert cache.get_seq_length() == ids.shape[1]
    assert_same_bits(run_step(wrapped_llama.train(), input_ids=ids, labels=ids), good)


def test_checkpointing_turned_on_afterwards(ids, wrapped_llama) -> None:
    good = run_step(wrapped_llama, input_ids=ids, labels=ids)
    wrapped_llama.gradient_checkpointing_enable()
    with pytest.raises(UnsupportedModel, match="gradient checkpointing was turned on"):
        run_step(wrapped_llama, input_ids=ids, labels=ids)
    wrapped_llama.gradient_checkpointing_disable()
    assert_same_bits(run_step(wrapped_llama, input_ids=ids, labels=ids), good)


def test_a_copy_of_a_wrapped_model_is_refused(wrapped_llama) -> None:
    with pytest.raises(UnsupportedModel, match=r"cannot be copied or pickled; call.*unwrap"):
        copy.deepcopy(wrapped_llama)


def test_the_state_dict_is_the_models_own(wrapped_llama) -> None:
    plain = MODELS["llama"]().state_dict()
    assert list(wrapped_llama.state_dict()) == list(plain)
    wrapped_llama.load_state_dict(plain)


def step_of_the_decoder(model: nn.Module, ids: torch.Tensor) -> Step:
    """A loss of the user's own on the decoder's output; the model itself is not called."""
    model.zero_grad(set_to_none=True)
    hidden = model.model(ids).last_hidden_state
    loss = F.cross_entropy(model.lm_head(hidden).flatten(0, 1), ids.flatten())
    loss.backward()
    return Step(loss=loss.detach(), gradients=gradients_of(model))


@pytest.mark.parametrize("before", ["nothing", "another length", "evaluation"])
def test_the_decoder_called_by_itself(before: str, ids, wrapped_llama) -> None:
    if before == "another length":
        run_step(wrapped_llama, input_ids=ids[:, :20], labels=ids[:, :20])
    elif before == "evaluation":
        with torch.no_grad():
            wrapped_llama(ids)
    plain = step_of_the_decoder(MODELS["llama"](), ids)
    exact = step_of_the_decoder(MODELS["llama"]().double(), ids)
    assert_as_exact_as_plain(step_of_the_decoder(wrapped_llama, ids), plain, exact)


def test_hidden_states_are_those_of_the_plain_model(ids, wrapped_llama) -> None:
    options = {"labels": ids, "output_hidden_states": True}
    ours = wrapped_llama(ids, **options).hidden_states
    plain = MODELS["llama"]()(ids, **options).hidden_states
    assert len(ours) == len(plain)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_a_tuple_instead_of_an_output_object(ids, wrapped_llama) -> None:
    loss = wrapped_llama(ids, labels=ids, return_dict=False)[0]
    assert torch.equal(loss, wrapped_llama(ids, labels=ids).loss)


def test_embeddings_instead_of_ids(ids, wrapped_llama) -> None:
    """And the embeddings get their gradient."""

    def run(model: nn.Module) -> torch.Tensor:
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=embedded, labels=ids).loss.backward()
        return embedded.grad

    torch.testing.assert_close(run(wrapped_llama), run(MODELS["llama"]()), rtol=1e-4, atol=1e-8)


def test_neither_ids_nor_embeddings_is_the_models_own_error(wrapped_llama) -> None:
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        wrapped_llama()


def test_planning_inside_a_patched_forward(ids) -> None:
    """accelerate's mixed precision decorates `forward` with one autocast object, which must not be
    entered a second time before it is left; and a model's hooks are called once a step."""
    model = memo_train.wrap(MODELS["llama"]())
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    run_step(model, input_ids=ids, labels=ids)
    assert not torch.is_autocast_enabled("cpu")
    assert len(calls) == 1
