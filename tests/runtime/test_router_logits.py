"""Router logits, asked for by the configuration or by a call: the loss and gradients of plain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from memo_train.runtime import HowToRun
from memo_train.testing import Step, gradients_of
from tests.runtime.policies import POLICIES, wrapped_of

_MOE = {"num_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {**_MOE, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**_MOE, "moe_intermediate_size": 16, "head_dim": 8},
    "Olmoe": _MOE,
}


def make(family: str, **options: Any) -> nn.Module:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        experts_implementation="eager",
        pad_token_id=0,
        **FAMILIES[family],
        **options,
    )
    torch.manual_seed(1)
    model: nn.Module = getattr(transformers, f"{family}ForCausalLM")(config)
    return model.train()


def step(model: nn.Module, ids: torch.Tensor, **call: Any) -> Step:
    loss = model(input_ids=ids, labels=ids, **call).loss
    loss.backward()
    return Step(loss=loss.detach(), gradients=gradients_of(model))


def assert_same(found: Step, plain: Step) -> None:
    torch.testing.assert_close(found.loss, plain.loss)
    assert found.gradients.keys() == plain.gradients.keys()
    for name, gradient in plain.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*the loss is not tiled:UserWarning")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_asked_for_by_the_configuration(family: str, policy: str, ids, wrapped) -> None:
    with pytest.warns(UserWarning, match=r"blocks 0, 1 are.*not tiled: config.output_router_log"):
        model = wrapped(make(family, output_router_logits=True), policy)
    assert_same(step(model, ids), step(make(family, output_router_logits=True), ids))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_asked_for_by_a_call(family: str, policy: str, ids, wrapped) -> None:
    model = wrapped(make(family), policy)
    assert {v.how for v in wrapped_of(model).verdicts} == {HowToRun.TILED}
    with pytest.warns(UserWarning, match="asks for the router logits"):
        found = step(model, ids, output_router_logits=True)
    assert_same(found, step(make(family), ids, output_router_logits=True))
    model.zero_grad()
    assert_same(step(model, ids), step(make(family), ids))
