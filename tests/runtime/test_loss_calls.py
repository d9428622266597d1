"""Ways to ask for a loss, and for logits beside it: plain's, by tiles where that can be.

Numerics level 4: error against float64 at most twice plain autograd's.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from memo_train.errors import InvalidInput
from memo_train.runtime import _loss
from memo_train.runtime._loss_proof import find_way
from memo_train.testing import Step, assert_as_exact_as_plain, gradients_of, run_step
from tests.runtime.causal_lms import MODELS
from tests.runtime.tiled_loss import WHOLE, check, is_tiled

CALLS: dict[str, Callable[[torch.Tensor], dict[str, Any]]] = {
    "another ignored index": lambda ids: {"labels": ids, "ignore_index": 5},
    "some logits": lambda ids: {"labels": ids[:, -20:], "logits_to_keep": 20},
    "all logits": lambda ids: {"labels": ids, "logits_to_keep": 0},
    "chosen logits": lambda ids: {
        "labels": ids[:, 3:30:2],
        "logits_to_keep": torch.arange(3, 30, 2),
    },
    "shifted labels": lambda ids: {"labels": ids, "shift_labels": ids.roll(-3, 1)},
    "items": lambda ids: {"labels": ids, "num_items_in_batch": 100},
    "items as a float": lambda ids: {"labels": ids, "num_items_in_batch": 99.5},
    "items as a tensor": lambda ids: {"labels": ids, "num_items_in_batch": torch.tensor(100)},
    "items as a vector": lambda ids: {"labels": ids, "num_items_in_batch": torch.tensor([100.0])},
    "label smoothing": lambda ids: {"labels": ids, "label_smoothing": 0.2},
    "both": lambda ids: {
        "labels": ids[:, -20:],
        "logits_to_keep": 20,
        "num_items_in_batch": 77,
        "ignore_index": 7,
    },
}


@pytest.mark.parametrize("call", CALLS)
def test_ways_to_ask_for_a_loss(call: str, ids, wrapped) -> None:
    batch = {"input_ids": ids, **CALLS[call](ids)}
    vector = call == "items as a vector"  # then the loss is a vector too
    if vector:
        with pytest.warns(UserWarning, match=WHOLE):
            check(wrapped(MODELS["llama"]()), MODELS["llama"], tiled=False, **batch)
        return
    check(wrapped(MODELS["llama"]()), MODELS["llama"], **batch)


@pytest.mark.skipif(
    not hasattr(transformers.modeling_utils, "slice_logits_to_keep"),
    reason="this Transformers takes one set of positions for all sequences",
)
def test_other_positions_in_every_sequence_are_not_tiled(ids, wrapped) -> None:
    keep = torch.stack([torch.arange(20), torch.arange(10, 30)])
    batch = {"input_ids": ids, "labels": ids[:, :20], "logits_to_keep": keep}
    with pytest.warns(UserWarning, match=WHOLE):
        check(wrapped(MODELS["llama"]()), MODELS["llama"], tiled=False, **batch)


@pytest.mark.filterwarnings(f"ignore:.*{WHOLE}")
def test_labels_of_another_length_are_the_models_own_error(ids, wrapped) -> None:
    for model in (MODELS["llama"](), wrapped(MODELS["llama"]())):
        with pytest.raises(ValueError, match="batch_size"):
            model(input_ids=ids, labels=ids[:, :20])


def test_shifted_labels_alone_are_no_labels_to_transformers(ids, wrapped) -> None:
    plain, model = MODELS["llama"](), wrapped(MODELS["llama"]())
    assert plain(input_ids=ids, shift_labels=ids).loss is None
    output = model(input_ids=ids, shift_labels=ids)
    assert output.loss is None
    torch.testing.assert_close(output.logits, plain(input_ids=ids).logits)


# Logits beside the loss


def two_losses(model: nn.Module, ids: torch.Tensor, look: Callable[[Any], torch.Tensor]) -> Step:
    model.zero_grad(set_to_none=True)
    output = model(input_ids=ids, labels=ids)
    loss = output.loss + 0.1 * look(output).float().logsumexp(-1).square().mean()
    loss.backward()
    return Step(loss=loss.detach(), gradients=gradients_of(model))


LOOKS: dict[str, Callable[[Any], torch.Tensor]] = {
    "attribute": lambda output: output.logits,
    "key": lambda output: output["logits"],
    "index": lambda output: output[1],
    "tuple": lambda output: output.to_tuple()[1],
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_second_loss_of_the_logits(look: str, ids, wrapped) -> None:
    make = MODELS["llama"]
    plain, exact = (two_losses(m, ids, LOOKS[look]) for m in (make(), make().double()))
    model = wrapped(make())
    assert_as_exact_as_plain(two_losses(model, ids, LOOKS[look]), plain, exact)
    assert is_tiled(model)


@pytest.mark.parametrize("name", ["llama", "own"])
@pytest.mark.parametrize("training", [True, False])
def test_logits_beside_the_loss(training: bool, name: str, ids, wrapped) -> None:
    plain, model = MODELS[name]().train(training), wrapped(MODELS[name]()).train(training)
    output = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(output.logits, plain(input_ids=ids).logits)
    assert isinstance(output, type(plain(input_ids=ids)))
    assert "logits" in repr(output)


def test_logits_in_a_tuple(ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]())
    loss, logits = model(input_ids=ids, labels=ids, return_dict=False)
    assert torch.equal(loss, model(input_ids=ids, labels=ids).loss)
    torch.testing.assert_close(logits, MODELS["llama"]()(input_ids=ids).logits)


def test_an_output_by_its_places(ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]())
    output = model(input_ids=ids, labels=ids)
    assert output[0] is output.loss is output["loss"]
    assert set(output.keys()) == {"loss"}
    with torch.no_grad():
        output = dataclasses.replace(output, loss=output.loss.detach(), logits=None)
    assert torch.equal(pickle.loads(pickle.dumps(output)).loss, output.loss)


def test_logits_after_backward_are_refused(ids, wrapped) -> None:
    output = wrapped(MODELS["llama"]())(input_ids=ids, labels=ids)
    output.loss.backward()
    with pytest.raises(InvalidInput, match="look at them before backward"):
        _ = output.logits


def test_logits_that_nobody_looks_at_are_never_made(ids, wrapped) -> None:
    model, rows = wrapped(MODELS["llama"]()), []
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: (rows.append(x.shape[1]), forward(x))[1]
    model(input_ids=ids, labels=ids).loss.backward()
    assert max(rows) <= 8
    assert sum(rows) >= ids.shape[1]


def test_a_new_kind_of_call_is_proven_once_before_its_step(ids, wrapped, monkeypatch) -> None:
    """A second proof, in the step, would take memory that later steps of its shape do not."""
    model, proofs = wrapped(MODELS["llama"]()), []
    monkeypatch.setattr(_loss, "find_way", lambda *a: proofs.append(a) or find_way(*a))
    positions = torch.arange(ids.shape[1])[None]
    for _ in range(2):
        run_step(model, input_ids=ids, labels=ids, position_ids=positions)
    assert len(proofs) == 1
