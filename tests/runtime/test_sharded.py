"""FSDP2 around a wrapped model: whole blocks are right, what is not right is refused by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import memo_train
from memo_train.errors import UnsupportedModel
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


def test_parts_of_a_block(mesh, ids) -> None:
    model = memo_train.wrap(MODELS["llama"](), alpha=0.5, tile_tokens=8)
    run_step(model, input_ids=ids, labels=ids)
    shard(model, mesh, inside=True)
    with pytest.raises(UnsupportedModel, match=r"FSDPLlamaMLP inside a block.*shard whole blocks"):
        model(input_ids=ids, labels=ids)


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


def test_sharding_before_wrap(mesh) -> None:
    with pytest.raises(UnsupportedModel, match=r"fully_shard was called on .* before wrap"):
        memo_train.wrap(shard(MODELS["llama"](), mesh))
