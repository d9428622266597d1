"""Steps in threads: of one model in any thread, of two models in two at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from memo_train.testing import Step, assert_same_bits, gradients_of
from tests.runtime.causal_lms import MODELS

PLAIN_ATTENTION = F.scaled_dot_product_attention
REPEATS = 10


@pytest.fixture(autouse=True)
def attention_put_back() -> Iterator[None]:
    """Whatever happens here, later tests see the original functions."""
    yield
    F.scaled_dot_product_attention = PLAIN_ATTENTION
    vars(ALL_ATTENTION_FUNCTIONS).pop("get_interface", None)


def step(model: nn.Module, ids: torch.Tensor) -> Step:
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return Step(loss=loss.detach(), gradients=gradients_of(model))


def test_a_step_in_another_thread(ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]())
    here = step(model, ids)
    with ThreadPoolExecutor(1) as threads:
        assert_same_bits(threads.submit(step, model, ids).result(), here)


def test_backward_in_another_thread(ids, wrapped) -> None:
    model = wrapped(MODELS["llama"]())
    here = step(model, ids)
    model.zero_grad(set_to_none=True)
    loss = model(input_ids=ids, labels=ids).loss
    with ThreadPoolExecutor(1) as threads:
        threads.submit(loss.backward).result()
    assert_same_bits(Step(loss=loss.detach(), gradients=gradients_of(model)), here)


def test_two_models_at_once(ids, wrapped) -> None:
    models = [wrapped(MODELS["llama"](), policy) for policy in ("mixed", "swap")]
    alone = step(models[0], ids)
    with ThreadPoolExecutor(2) as threads:
        for _ in range(REPEATS):
            for found in threads.map(step, models, [ids, ids]):
                assert_same_bits(found, alone)
    assert F.scaled_dot_product_attention is PLAIN_ATTENTION
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
