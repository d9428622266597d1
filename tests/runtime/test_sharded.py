"""FSDP2 in a world of one: the same step bit for bit, sharded before `wrap` or after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import memo_train
from memo_train.testing import Step, assert_same_bits, gradients_of, run_step
from tests.runtime.causal_lms import MODELS


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


def test_blocks_and_root(mesh, ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    memo_train.use_layouts(model, False)  # gathered parameters are not the layout's
    good = run_step(model, input_ids=ids, labels=ids)
    model.zero_grad()
    shard(model, mesh)
    torch.manual_seed(0)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: g.full_tensor() for name, g in gradients_of(model).items()}
    assert_same_bits(Step(loss=loss.detach(), gradients=gradients), good)


def test_a_shape_that_comes_first_after_sharding(mesh, ids) -> None:
    """`wrap` has measured what any length needs: nothing is profiled under FSDP2's hooks."""
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    memo_train.use_layouts(model, False)
    shard(model, mesh)
    torch.manual_seed(0)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: g.full_tensor() for name, g in gradients_of(model).items()}
    whole = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    good = run_step(whole, input_ids=ids, labels=ids)
    assert_same_bits(Step(loss=loss.detach(), gradients=gradients), good)


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
    torch.manual_seed(0)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: g.full_tensor() for name, g in gradients_of(model).items()}
    whole = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    good = run_step(whole, input_ids=ids, labels=ids)
    assert_same_bits(Step(loss=loss.detach(), gradients=gradients), good)
