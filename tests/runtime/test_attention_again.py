"""Attention's forward run again in backward, where o is not saved: not a bit changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import memo_train
from memo_planner import Place
from memo_train.device import CpuDevice
from memo_train.errors import BackwardTwice
from memo_train.runtime import StepPolicy
from memo_train.testing import assert_same_bits, run_step
from tests.runtime.causal_lms import gpt2_with_dropout
from tests.runtime.policies import POLICIES, chooser, wrapped_of
from tests.runtime.small_llama import NUM_BLOCKS, own_llama


def again(
    policy: str, tile_tokens: int, free_bytes: int, num_groups: int
) -> Callable[[int, int], StepPolicy]:
    """`chooser` with o made again in every block."""
    choose = chooser(policy, tile_tokens, NUM_BLOCKS, free_bytes, num_groups)

    def choose_again(batch: int, tokens: int) -> StepPolicy:
        step = choose(batch, tokens)
        blocks = tuple(replace(block, o=Place.RECOMPUTE) for block in step.policy.blocks)
        return replace(step, policy=replace(step.policy, blocks=blocks))

    return choose_again


@pytest.mark.parametrize("tile_tokens", [8, 64], ids=["tiles", "one tile"])
@pytest.mark.parametrize("make", [own_llama, gpt2_with_dropout], ids=["llama", "dropout"])
def test_no_bit_changes(ids: Tensor, make: Callable[[], nn.Module], tile_tokens: int) -> None:
    """Numerics level 3: dropout in attention drops the same."""
    model = memo_train.wrap(make(), alpha=0.5)
    wrapped = wrapped_of(model)
    wrapped.choose_policy = chooser("keep", tile_tokens, NUM_BLOCKS)
    keep = run_step(model, input_ids=ids, labels=ids)
    for policy in POLICIES:
        for num_groups in {1, wrapped.num_groups}:
            wrapped.choose_policy = again(policy, tile_tokens, 2**40, num_groups)
            assert_same_bits(run_step(model, input_ids=ids, labels=ids), keep)


def test_no_o_is_kept_or_sent(ids: Tensor) -> None:
    """Numerics level 2: x alone is on the host when forward ends."""
    model = memo_train.wrap(own_llama(), alpha=0.5)
    wrapped_of(model).choose_policy = again("recompute", 8, 0, 1)
    loss = model(input_ids=ids, labels=ids).loss
    # x of each block in whole pages; other than those nothing waits there.
    x_bytes = -(-ids.numel() * 32 * 4 // 4096) * 4096
    assert memo_train.stats().host_used_bytes == NUM_BLOCKS * x_bytes
    loss.backward(retain_graph=True)
    with pytest.raises(BackwardTwice):
        loss.backward()


def test_wrap_chooses_it_where_the_host_is_short(device: CpuDevice) -> None:
    """Numerics level 3: with the same tiles, not a bit is another than where o is swapped."""
    gib, mib, tokens = 2**30, 2**20, 4096
    ids = torch.randint(1, 61, (1, tokens), generator=torch.Generator().manual_seed(3))
    limits = {"device_gib": 9 * mib / gib, "host_gib": 2.25 * mib / gib}
    model = memo_train.wrap(own_llama(), seq_len=tokens, **limits)
    plan, wrapped = memo_train.plan(model), wrapped_of(model)
    assert Place.RECOMPUTE in {block.o for block in plan.policy.blocks}
    memo_train.reset_stats()
    again = run_step(model, input_ids=ids, labels=ids)
    assert memo_train.stats().host_peak_bytes <= 2.25 * mib
    device.set_host_cap(None)
    assert wrapped.choose_policy is not None
    step = wrapped.choose_policy(1, tokens)
    blocks = tuple(
        replace(block, o=Place.SWAP) if block.o is Place.RECOMPUTE else block
        for block in step.policy.blocks
    )
    wrapped.choose_policy = lambda *_: replace(step, policy=replace(step.policy, blocks=blocks))
    assert_same_bits(run_step(model, input_ids=ids, labels=ids), again)
    memo_train.unwrap(model)
