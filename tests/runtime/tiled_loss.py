"""Models whose loss is tiled, compared with plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from memo_train.testing import assert_as_exact_as_plain, float64_step, run_step
from tests.runtime.policies import wrapped_of

Make = Callable[[], nn.Module]
WHOLE = "the loss of this call is not tiled"


def is_tiled(model: nn.Module) -> bool:
    """Whether the last loss of a wrapped model was computed by tiles."""
    loss = wrapped_of(model)._loss
    return loss is not None and loss.why_whole is None


def check(model: nn.Module, make: Make, *, tiled: bool = True, **batch: Any) -> None:
    plain, exact = run_step(make(), **batch), float64_step(make(), **batch)
    assert_as_exact_as_plain(run_step(model, **batch), plain, exact)
    assert is_tiled(model) == tiled


def family(name: str, **options: Any) -> Make:
    def make() -> nn.Module:
        torch.manual_seed(1)
        config = getattr(transformers, f"{name}Config")(vocab_size=61, **options)
        model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
        return model.train()

    return make
