"""A trainer's loss as a module, so that `verify` can take a step of it plain and wrapped."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from memo_train.runtime import causal_lm_of

_COUNTED = ("_metrics", "_total_train_tokens")
"""What TRL's trainers add up while they compute a loss."""


class Objective(nn.Module):
    """`compute_loss` of a trainer, called with a batch that the trainer has prepared.

    Its parameters are the model's; what the trainer counts meanwhile is put back.
    """

    def __init__(self, trainer: Any, compute_loss: Callable[..., Any]) -> None:
        super().__init__()
        self.model = trainer.accelerator.unwrap_model(trainer.model)
        # Not a child of a module.
        self.__dict__.update(_trainer=trainer, _compute_loss=compute_loss)

    def get_base_model(self) -> nn.Module:
        """The causal LM, as of PEFT's models."""
        return causal_lm_of(self.model)

    def forward(self, *, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """(loss,), as a model's output."""
        trainer = self.__dict__["_trainer"]
        before = {n: copy.deepcopy(getattr(trainer, n)) for n in _COUNTED if hasattr(trainer, n)}
        try:
            # Some take what they use out of the batch.
            loss = self.__dict__["_compute_loss"](self.model, dict(inputs), *args, **kwargs)
        finally:
            for name, value in before.items():
                setattr(trainer, name, value)
        return (loss[0] if isinstance(loss, tuple) else loss,)
