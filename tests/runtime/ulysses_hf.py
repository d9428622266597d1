"""Users of DeepSpeed's `UlyssesSPAttentionHF` wrap their model; writes what came out, as JSON.

torchrun --nproc-per-node 2 tests/runtime/ulysses_hf.py OUT.json [CASE...]

Batches and losses are DeepSpeed's way: every rank has a range of the tokens and a loss of its own
labels, which the caller weighs. They are compared with one process that has all tokens.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn
from accelerate import Accelerator
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DeepSpeedSequenceParallelConfig
from deepspeed.runtime.sequence_parallel import parallel_state_sp
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch.utils.data import DataLoader
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import memo_train
from memo_train.errors import InvalidInput, UnsupportedModel
from memo_train.testing import (
    Step,
    assert_as_exact_as_plain,
    assert_same_bits,
    float64_step,
    run_step,
)
from tests.runtime.causal_lms import MODELS
from tests.runtime.model_state import run_cases
from tests.runtime.policies import POLICIES, force
from tests.runtime.shared_cases import averaged, labelled

TOKENS = 48


def make() -> Any:
    return MODELS["llama_gqa"](attn_implementation="sdpa")


@contextmanager
def registry_kept() -> Iterator[None]:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = before
        parallel_state_sp._release_sequence_parallel_groups()  # there may be one at a time


@contextmanager
def registered(model: Any, **options: Any) -> Iterator[None]:
    with registry_kept():
        UlyssesSPAttentionHF.register_with_transformers(
            model,
            core_attn_implementation="sdpa",
            sequence_parallel_size=dist.get_world_size(),
            micro_batch_size=2,
            **options,
        )
        yield


def part_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As `UlyssesSPDataLoaderAdapter` cuts it; more labels count on one rank than on the other."""
    labels = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    positions = torch.arange(TOKENS).expand(2, -1)
    whole = {"input_ids": batch["input_ids"], "position_ids": positions, "shift_labels": labels}
    rank, size = dist.get_rank(), dist.get_world_size()
    return {name: value.chunk(size, dim=1)[rank].contiguous() for name, value in whole.items()}


def of_all(own: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The ranks' losses weighed by how many labels they have."""
    losses = torch.distributed.nn.functional.all_gather(own)
    counts = torch.distributed.nn.functional.all_gather((labels != -100).sum())
    loss: torch.Tensor = sum(a * n for a, n in zip(losses, counts, strict=True)) / sum(counts)
    return loss


def step_of(model: Any, part: dict[str, torch.Tensor]) -> Step:
    """A step as Accelerate's and DeepSpeed's guides write it: losses weighed by their labels."""
    model.zero_grad(set_to_none=True)
    labels = part["shift_labels"].contiguous()
    loss = of_all(model(**part, labels=labels).loss, labels)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return averaged(Step(loss=loss.detach(), gradients=gradients))


def batch() -> dict[str, torch.Tensor]:
    found = labelled(TOKENS)
    found["labels"][0, 5:20] = -100
    return found


def check(**options: Any) -> None:
    """One process's numbers (4), the same bits by every policy (3), and none but named sizes."""
    reference = make()
    plain, exact = run_step(reference, **batch()), float64_step(reference, **batch())
    model = make()
    with registered(model, **options):
        memo_train.wrap(model, alpha=0.5, tile_tokens=8, seq_len=TOKENS)
        assert memo_train.plan(model).policy.tokens == TOKENS // dist.get_world_size()
        steps = {p: step_of(force(model, p, 4), part_of(batch())) for p in POLICIES}
        memo_train.unwrap(model)
        theirs = step_of(model, part_of(batch()))
    for step in steps.values():
        assert_same_bits(step, steps["keep"])
    assert_as_exact_as_plain(steps["keep"], plain, exact)
    assert_as_exact_as_plain(theirs, plain, exact)  # what users have without us


def any_length() -> None:
    check()


def a_fixed_length() -> None:
    check(seq_length=TOKENS, seq_length_is_variable=False)


def evaluation_apart() -> None:
    """`disable_in_eval`: each rank has sequences of its own then."""
    model, ids = make(), batch()["input_ids"].roll(dist.get_rank(), 1)
    expected = make().eval()(input_ids=ids, labels=ids).loss
    with registered(model, disable_in_eval=True):
        memo_train.wrap(model, alpha=0.5, tile_tokens=8)
        with torch.no_grad():
            found = model.eval()(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(found, expected)


def what_is_refused() -> None:
    model = memo_train.wrap(make(), alpha=0.5, tile_tokens=8)
    with (
        registered(model),
        pytest.raises(UnsupportedModel, match="was registered with Transformers after wrap"),
    ):
        model(**part_of(batch()))
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("sp",))
    model = memo_train.wrap(make(), mesh=mesh, alpha=0.5, tile_tokens=8)
    with (
        registered(model),
        pytest.raises(UnsupportedModel, match="wrap it without mesh after register"),
    ):
        model(**memo_train.shard_batch(batch(), mesh))
    model = make()
    for options in ({"mesh": mesh}, {"sp": "ring"}):
        with (
            registered(model),
            pytest.raises(InvalidInput, match="UlyssesSPAttentionHF, whose ranks share"),
        ):
            memo_train.wrap(model, **options)


def through_accelerate() -> None:
    """`ParallelismConfig(sp_size=2)`: wrapped after `prepare`, AdamW's step is the unwrapped one's.

    Its eps is large, so that a gradient's scale shows.
    """
    theirs, ours = trained_by_accelerate(wrapped=False), trained_by_accelerate(wrapped=True)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=2e-6, atol=1e-7)


def trained_by_accelerate(*, wrapped: bool) -> dict[str, torch.Tensor]:
    handler = DeepSpeedSequenceParallelConfig(
        sp_seq_length=TOKENS, sp_seq_length_is_variable=False, sp_attn_implementation="sdpa"
    )
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 1},
    }
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
        parallelism_config=ParallelismConfig(sp_size=2, sp_backend="deepspeed", sp_handler=handler),
    )
    model, whole = make(), batch() | {"position_ids": torch.arange(TOKENS).expand(2, -1)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1.0)
    with registry_kept():
        engine, optimizer, loader = accelerator.prepare(
            model, optimizer, DataLoader([whole], batch_size=None)
        )
        if wrapped:
            memo_train.wrap(model, alpha=0.5, tile_tokens=8)
        part = next(iter(loader))
        labels = part["shift_labels"].contiguous()
        # As its guide has it: the loader leaves no `labels`, so the model gives no loss.
        logits = engine(**part).logits
        own = model.loss_function(logits, None, model.config.vocab_size, shift_labels=labels)
        accelerator.backward(of_all(own, labels))
        optimizer.step()
    AcceleratorState._reset_state(reset_partial_state=True)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


CASES: dict[str, Callable[[], None]] = {
    "any length": any_length,
    "a fixed length": a_fixed_length,
    "evaluation apart": evaluation_apart,
    "what is refused": what_is_refused,
    "through Accelerate": through_accelerate,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # building it takes a minute
    gc.collect()
    gc.freeze()
    deepspeed.init_distributed("gloo", timeout=timedelta(seconds=60))
    run_cases(CASES, Path(sys.argv[1]), sys.argv[2:])
