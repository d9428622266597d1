"""Training steps whose memory is planned."""

from __future__ import annotations

import torch
from torch import nn

import memo_train
from memo_train.layout import ShapeReport, StepLayouts
from tests.runtime.causal_lms import MODELS, VOCAB_SIZE
from tests.runtime.policies import force

TILE_TOKENS = 16


def layouts_of(model: nn.Module) -> StepLayouts:
    layouts = model._memo_train.layouts
    assert isinstance(layouts, StepLayouts)
    return layouts


def wrapped(family: str, policy: str = "mixed", *, on: bool = True) -> nn.Module:
    """A model under a policy of `POLICIES`, in tiles of `TILE_TOKENS`."""
    model = force(memo_train.wrap(MODELS[family](), alpha=0.5), policy, TILE_TOKENS)
    memo_train.use_layouts(model, on)
    return model


class Training:
    """Steps of AdamW on random tokens, the same for every model; `losses` and `model`.

    After each step the layouts under way are waited for, so that the next one can have its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.losses: list[float] = []
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        self._generator = torch.Generator().manual_seed(5)

    def ids(self, batch: int = 2, tokens: int = 64) -> torch.Tensor:
        return torch.randint(1, VOCAB_SIZE, (batch, tokens), generator=self._generator)

    def accumulate(self, batch: int = 2, tokens: int = 64) -> None:
        ids = self.ids(batch, tokens)
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self.losses.append(loss.item())
        layouts_of(self.model).wait()

    def update(self) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad()

    def step(self, batch: int = 2, tokens: int = 64) -> None:
        self.accumulate(batch, tokens)
        self.update()


def only_report(model: nn.Module) -> ShapeReport:
    (report,) = memo_train.memory_report(model).shapes
    return report
