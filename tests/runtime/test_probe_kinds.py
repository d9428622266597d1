"""One block is probed for all that are alike, and none for one that is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memo_train
from memo_train.runtime import HowToRun, _probe
from tests.runtime import toy
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import wrapped_of


class NumberedBlock(toy.ConvolutionBlock):
    """Knows its place; the second block of the list mixes tokens."""

    num_made = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer_idx = NumberedBlock.num_made
        NumberedBlock.num_made += 1

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        if self.layer_idx == 1:
            return super().forward(x)
        return toy.ToyBlock.forward(self, x)


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The blocks that are probed from now on."""
    blocks: list[nn.Module] = []
    probe: Callable[..., Any] = _probe._probe_block

    def note(block: nn.Module, *args: Any) -> Any:
        blocks.append(block)
        return probe(block, *args)

    monkeypatch.setattr(_probe, "_probe_block", note)
    return blocks


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "own"])
def test_alike_but_for_their_place(name: str, probed) -> None:
    memo_train.wrap(MODELS[name](), alpha=0.5)
    assert len(probed) == 1


def test_a_block_that_decides_by_its_place(probed) -> None:
    NumberedBlock.num_made = 0
    with pytest.warns(UserWarning, match="blocks 1 are checkpointed"):
        model = memo_train.wrap(toy.toy(NumberedBlock), alpha=0.5)
    hows = [verdict.how for verdict in wrapped_of(model).verdicts]
    assert hows == [HowToRun.TILED, HowToRun.CHECKPOINTED, HowToRun.TILED]
    assert len(probed) == 2


@pytest.mark.parametrize("what", ["attribute", "parameter", "frozen", "forward"])
def test_a_block_that_differs_is_probed_by_itself(what: str, probed) -> None:
    model = toy.toy(toy.ToyBlock)
    block = model.base_model.blocks[2]
    if what == "attribute":
        block.scale = 0.5
    elif what == "parameter":
        block.mlp[1], block.mlp[3] = nn.Linear(toy.HIDDEN, 24), nn.Linear(24, toy.HIDDEN)
    elif what == "frozen":
        block.out.requires_grad_(False)
    else:
        block.mlp.forward = lambda x: torch.tanh(x)
    memo_train.wrap(model, alpha=0.5)
    assert probed == [model.base_model.blocks[0], block]
