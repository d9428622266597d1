"""What cases of ranks that share sequences are made of, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

import memo_train
from memo_train.errors import MemoError, RanksDiffer
from memo_train.model._llama import LlamaOutput
from memo_train.profiling import AHEAD_VARIABLE
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    float64_step,
    run_step,
)
from tests.runtime.policies import force

Case = Callable[[DeviceMesh], None]
CASES: dict[str, tuple[Case, frozenset[int]]] = {}
ANY = frozenset({1, 2, 4})
SEVERAL = frozenset({2, 4})
TWO = frozenset({2})


def case(ranks: frozenset[int] = ANY) -> Callable[[Case], Case]:
    def add(function: Case) -> Case:
        CASES[function.__name__] = function, ranks
        return function

    return add


def ids_of(tokens: int = 37, batch: int = 2) -> torch.Tensor:
    return torch.randint(1, 61, (batch, tokens), generator=torch.Generator().manual_seed(3))


def labelled(tokens: int = 37) -> dict[str, Any]:
    ids = ids_of(tokens)
    labels = ids.clone()
    labels[0, 5:9] = -100
    return {"input_ids": ids, "labels": labels}


def packed(*lengths: int) -> dict[str, Any]:
    """Documents one behind the other, as Transformers knows them when it makes no cache."""
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1).contiguous()
    return labelled(sum(lengths)) | {"position_ids": positions, "use_cache": False}


def averaged(step: Step) -> Step:
    """The step with the mean of all ranks' gradients, as DDP makes it."""
    for gradient in step.gradients.values():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return step


def wrapped(make: Callable[..., nn.Module], mesh: DeviceMesh, **options: Any) -> nn.Module:
    """For steps whose policy is set by hand: nobody asks for a profile, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(AHEAD_VARIABLE, "0")
        return memo_train.wrap(make(), mesh=mesh, alpha=0.5, tile_tokens=8, **options)


def check(
    make: Callable[..., nn.Module],
    batch: dict[str, Any],
    mesh: DeviceMesh,
    *,
    dtype: torch.dtype = torch.float32,
    policies: tuple[str, ...] = ("keep", "mixed"),
    sp: str = "auto",
) -> None:
    """Every policy gives the same bits, and the step is as exact as plain autograd's (level 4)."""
    plain_model = make().to(dtype)
    plain, exact = run_step(plain_model, **batch), float64_step(plain_model, **batch)
    model = wrapped(lambda: make().to(dtype), mesh, sp=sp)
    part = memo_train.shard_batch(batch, mesh)
    steps = {p: averaged(run_step(force(model, p, 4), **part)) for p in policies}
    for step in steps.values():
        assert_same_bits(step, steps[policies[0]])
    assert_as_exact_as_plain(steps[policies[0]], plain, exact, dtype=dtype)


def check_refused(
    error: type[MemoError], match: str, run: Callable[[], Any], others: str | None = None
) -> None:
    """The same kind of error on every rank, none waits for another; others: for ranks but 0."""
    wanted = match if others is None or dist.get_rank() == 0 else others
    with pytest.raises(MemoError, match=wanted) as raised:
        run()
    assert isinstance(raised.value, error if wanted == match else RanksDiffer), raised.value
    dist.barrier()


class AroundLlama(nn.Module):
    """A causal LM with the parts of the project's own."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.model, self.lm_head, self.config = inner.model, inner.lm_head, inner.config

    @property
    def base_model(self) -> nn.Module:
        return self.model

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids, position_ids)
        return hidden

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        *,
        position_ids: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
    ) -> Any:
        """Its loss is a mean, whatever `num_items_in_batch` there might be."""
        logits = self.lm_head(self.hidden(input_ids, position_ids))
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        if shift_labels is None:
            return LlamaOutput(None, logits)
        return LlamaOutput(F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten()), logits)


class ShiftedLM(AroundLlama):
    """Mixes tokens behind its blocks."""

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        hidden = super().hidden(input_ids, position_ids)
        return hidden + hidden.roll(1, dims=1)


class CountedLM(AroundLlama):
    """Counts positions by itself, though it takes some."""

    def hidden(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
        return super().hidden(input_ids, None)
