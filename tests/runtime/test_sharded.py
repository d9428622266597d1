"""The same step bit for bit: FSDP2 in a world of one, and weights that come and go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import memo_train
from memo_train.testing import Step, assert_same_bits, gradients_of, run_step
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import POLICIES, force

# What a forward cannot do while FSDP2 brings parameters in and out.
pytestmark = pytest.mark.usefixtures("measured_ahead")


@pytest.fixture
def mesh() -> Iterator[dist.DeviceMesh]:
    """A world of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def shard(model: nn.Module, mesh: dist.DeviceMesh, *, inside: bool = False) -> nn.Module:
    for block in model.model.layers:
        if inside:
            fully_shard(block.mlp, mesh=mesh)
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def sharded_step(model: nn.Module, ids: torch.Tensor) -> Step:
    """Loss and whole gradients of a step of a model that FSDP2 shards."""
    torch.manual_seed(0)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: g.full_tensor() for name, g in gradients_of(model).items()}
    return Step(loss=loss.detach(), gradients=gradients)


def test_blocks_and_root(mesh, ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    memo_train.use_layouts(model, False)  # gathered parameters are not the layout's
    good = run_step(model, input_ids=ids, labels=ids)
    model.zero_grad()
    shard(model, mesh)
    assert_same_bits(sharded_step(model, ids), good)


def test_a_shape_that_comes_first_after_sharding(mesh, ids) -> None:
    """`wrap` has measured what any length needs: nothing is profiled under FSDP2's hooks."""
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    memo_train.use_layouts(model, False)
    shard(model, mesh)
    step = sharded_step(model, ids)
    whole = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    assert_same_bits(step, run_step(whole, input_ids=ids, labels=ids))


def test_no_logits_are_made_for_the_root_s_hooks(mesh, ids) -> None:
    """FSDP2 rebuilds the model's output, field by field; who asks that for logits has them."""
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    expected = MODELS["llama"]()(input_ids=ids, labels=ids).logits
    output = shard(model, mesh)(input_ids=ids, labels=ids)
    assert output.lazy_logits._made is None
    torch.testing.assert_close(output.logits, expected)
    assert output.lazy_logits._made is output.logits


def test_sharding_before_wrap(mesh, ids) -> None:
    """Parts of blocks, too: the step is bit for bit the one of a model that is not sharded."""
    model = memo_train.wrap(shard(MODELS["llama"](), mesh, inside=True), alpha=0.5, tile_tokens=8)
    memo_train.use_layouts(model, False)
    assert {type(p) for p in model.parameters()} == {DTensor}
    step = sharded_step(model, ids)
    whole = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    assert_same_bits(step, run_step(whole, input_ids=ids, labels=ids))


class OtherMemory:
    """Gives blocks their weights for each forward and each backward, as ZeRO 3 does.

    In other memory each time; what was before is poisoned, as somebody else's values would.
    """

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        for block in blocks:
            block._z3_leaf = True
            weights = {p: p.detach().clone() for p in block.parameters()}
            for number, parameter in enumerate(weights):
                parameter.ds_id = number
            bring, take = partial(self._bring, weights), partial(self._take, weights)
            take()
            block.register_forward_pre_hook(bring)
            block.register_forward_hook(partial(self._behind, bring, take))

    def _behind(self, bring: Any, take: Any, block: nn.Module, x: Any, y: torch.Tensor) -> None:
        take()
        y.register_hook(bring)

    def _bring(self, weights: dict[Any, torch.Tensor], *_: Any) -> None:
        for parameter, values in weights.items():
            # Behind something else in one buffer, at another place each time.
            self._num_brought = getattr(self, "_num_brought", 0) + 1
            buffer = torch.full((values.numel() + self._num_brought,), torch.nan)
            parameter.data = buffer[self._num_brought :].view_as(values).copy_(values)

    def _take(self, weights: dict[Any, torch.Tensor]) -> None:
        for parameter in weights:
            parameter.data.fill_(torch.nan)
            parameter.data = parameter.data.new_empty(0)


@pytest.mark.parametrize("policy", POLICIES)
def test_weights_that_come_back_in_other_memory(policy: str, ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    memo_train.use_layouts(force(model, policy, 8), False)
    good = run_step(model, input_ids=ids, labels=ids)
    model.zero_grad()
    OtherMemory(model.model.layers)
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), good)
