"""What a block needs soonest is asked for before what the block before it needs later."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from memo_train.device import PlainCopies
from tests.runtime.causal_lms import own_llama
from tests.runtime.policies import force, wrapped_of


@pytest.fixture
def fetched(device, wrapped, monkeypatch) -> dict[tuple[str, int], list[int]]:
    """(stage, block) -> sizes of the copies back that were asked for in it, in a swapped step."""
    ids = torch.randint(1, 61, (1, 512), generator=torch.Generator().manual_seed(3))
    model = force(wrapped(own_llama(), "swap", 64), "swap", 64, 1 << 40)
    sizes: dict[tuple[str, int], list[int]] = defaultdict(list)
    stage = ["", -1]

    def observe(name: str, block: int, tile: int) -> None:
        stage[:] = [name, block]

    def copy(copies: PlainCopies):
        sizes[(stage[0], stage[1])].extend(nbytes for _, _, nbytes in copies)
        return plain(copies)

    plain = device.copy_all_to_device
    monkeypatch.setattr(device, "copy_all_to_device", copy)
    monkeypatch.setattr(wrapped_of(model), "observer", observe)
    model(input_ids=ids, labels=ids).loss.backward()
    return sizes


def test_a_block_asks_for_all_its_own_before_its_attention(fetched) -> None:
    ahead_of_last = fetched.pop(("between", -1))
    for block in (1, 2):
        assert fetched.pop(("attention_backward", block)) == ahead_of_last, "not block - 1 alone"
    assert {stage for stage, _ in fetched} == {"post_backward"}
    assert len(ahead_of_last) == 2 + 8 * 10, "x, o and ten storages of each tile"
