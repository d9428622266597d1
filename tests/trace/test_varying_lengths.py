"""Steps that all have another shape: one profile, one plan a bucket, bytes as predicted."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
import transformers
from torch import nn
from transformers import LlamaForCausalLM

import memo_train
import memo_train.profiling
from memo_planner.background import BackgroundCall
from memo_planner.errors import SolverError
from memo_planner.schedule import plan_on_clock
from memo_train.model import Llama, LlamaConfig
from memo_train.planning import StepPlanner
from memo_train.trace._profile import state_bytes
from tests.trace.own_process import rows_of

torch.set_num_threads(1)
GIB = 2**30
WORK_SPACE_BYTES = 3 * 2**19
"""Of attention's kernels: a long sequence needs it, one of some hundred tokens does not."""


@pytest.fixture(autouse=True)
def without_earlier_models() -> None:
    """A limit is of everything in the process, also of what earlier tests left."""
    gc.collect()


def make_model() -> nn.Module:
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "ffn_size": 160, "num_heads": 4, "num_kv_heads": 2}
    return Llama(LlamaConfig(vocab_size=61, num_blocks=3, **sizes))


def planner_of(model: nn.Module) -> StepPlanner:
    planner = model._memo_train
    assert isinstance(planner, StepPlanner)
    return planner


def step(model: nn.Module, batch: int, tokens: int) -> None:
    ids = torch.randint(61, (batch, tokens))
    model(ids, ids).loss.backward()
    model.zero_grad()


def hf_llama() -> nn.Module:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=61,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=0,
        )
    ).train()


def batch_of(kind: str, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 61, (batch, tokens))
    found = {"input_ids": ids, "labels": ids}
    if kind == "padded":
        mask = torch.ones_like(ids)
        mask[0, -3:] = 0
        found["attention_mask"] = mask
    if kind == "packed":
        found["position_ids"] = torch.cat([torch.arange(tokens // 2)] * 2)[None].repeat(batch, 1)
    return found


@pytest.fixture
def forbid_profiles(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, an error in whoever measures a profile."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a profile was measured inside a forward")

    def forbid() -> None:
        for name in ("measure_profile", "for_two_sequences"):
            monkeypatch.setattr(memo_train.profiling, name, refuse)

    return forbid


@pytest.mark.usefixtures("measured_ahead")
@pytest.mark.parametrize("mib", [None, 40])
def test_no_step_that_comes_is_profiled_in_its_forward(
    mib: int | None, forbid_profiles: Callable[[], None]
) -> None:
    """Lengths on both sides of the model's table, batches, masks, autocast; what was not foreseen
    (float16 on a CPU) goes by what was."""
    model = hf_llama()
    limit = None if mib is None else (state_bytes(model) + mib * 2**20) / GIB
    memo_train.wrap(model, device_gib=limit)
    forbid_profiles()
    dtypes, kinds = (torch.float32, torch.bfloat16, torch.float16), ("plain", "padded", "packed")
    shapes = ((1, 40), (3, 90), (2, 130), (1, 200))
    for dtype, kind, (batch, tokens) in itertools.product(dtypes, kinds, shapes):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(**batch_of(kind, batch, tokens)).loss
        loss.backward()
    memo_train.unwrap(model)


@pytest.mark.usefixtures("measured_ahead")
def test_lengths_far_beyond_a_profile_are_not_profiled(
    forbid_profiles: Callable[[], None],
) -> None:
    model = make_model()
    memo_train.wrap(model, device_gib=(state_bytes(model) + 40 * 2**20) / GIB)
    forbid_profiles()
    for batch, tokens in ((1, 40), (3, 41), (1, 1300), (2, 700), (1, 2600)):
        step(model, batch, tokens)
    memo_train.unwrap(model)


@pytest.mark.usefixtures("measured_ahead")
def test_groups_of_heads_are_not_profiled_in_a_forward(forbid_profiles: Callable[[], None]) -> None:
    model = make_model()
    memo_train.wrap(model, device_gib=(state_bytes(model) + 4 * 2**20) / GIB)
    forbid_profiles()
    step(model, 1, 1200)
    assert memo_train.plan(model).policy.num_groups > 1
    memo_train.unwrap(model)


@pytest.mark.usefixtures("measured_ahead")
def test_a_changed_model_is_profiled_again_and_once(forbid_profiles: Callable[[], None]) -> None:
    model = memo_train.wrap(make_model())
    step(model, 1, 60)
    model.bfloat16()
    step(model, 1, 60)
    forbid_profiles()
    step(model, 2, 70)
    model.float()
    step(model, 2, 70)
    memo_train.unwrap(model)


# A layout that is left is told and made anew; here only bytes are looked at.
@pytest.mark.filterwarnings("ignore:.*as its layout planned")
@pytest.mark.usefixtures("measured_ahead")
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["plain", "padded"])
def test_a_foreseen_or_derived_profile_is_not_below_a_step(
    kind: str, precision: torch.dtype
) -> None:
    """Level 2: what a step under autocast takes is within what was planned for it."""
    gc.collect()
    model = hf_llama()
    memo_train.wrap(model, alpha=0.0, tile_tokens=32)
    memo_train.reset_stats()
    for _ in range(2):
        gc.collect()
        before_bytes = memo_train.stats().device_used_bytes
        memo_train.reset_stats()
        with torch.autocast("cpu", precision):
            loss = model(**batch_of(kind, 2, 120)).loss
        loss.backward()
        model.zero_grad(set_to_none=False)
    peak_bytes = memo_train.stats().device_peak_bytes - before_bytes
    plan = memo_train.plan(model)
    # With holes: this process has others' tensors between the step's.
    assert peak_bytes <= plan.prediction.device_room_bytes - plan.profile.state_bytes
    memo_train.unwrap(model)


def tight_model() -> nn.Module:
    """Under a limit at which a step of 700 tokens keeps some of its tiles."""
    model = make_model()
    memo_train.wrap(model, device_gib=(state_bytes(model) + 4 * 2**20) / GIB)
    return model


def gradients_of(model: nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    model(ids, ids).loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def test_the_exact_plan_follows_and_changes_no_bit() -> None:
    """Level 3: a bucket's plan in the first step; then the length's own, in the same tiles."""
    model = tight_model()
    planner = planner_of(model)
    ids = torch.randint(61, (1, 650))
    first = gradients_of(model, ids)
    by_bucket = memo_train.plan(model)
    assert any(block.recompute_tiles or block.swaps for block in by_bucket.policy.blocks)
    planner.wait()
    second = gradients_of(model, ids)
    own = memo_train.plan(model)
    tile_tokens = by_bucket.policy.tile_tokens
    assert own == plan_on_clock(own.profile, 650, own.limits, tile_tokens=tile_tokens)
    assert own.policy.tile_tokens == tile_tokens
    assert own.prediction.extra_s <= by_bucket.prediction.extra_s
    assert own.prediction.binds
    assert all(map(torch.equal, first, second))
    memo_train.unwrap(model)


def test_where_everything_is_kept_no_plan_is_sought() -> None:
    model = memo_train.wrap(make_model())
    step(model, 1, 650)
    assert not planner_of(model)._sought
    memo_train.unwrap(model)


def test_plans_that_are_sought_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memo_train.planning._MOST_SOUGHT", 2)
    monkeypatch.setattr(BackgroundCall, "done", lambda call: False)
    model = tight_model()
    for tokens in (650, 660, 670, 680):
        step(model, 1, tokens)
        assert len(planner_of(model)._sought) <= 2
    monkeypatch.undo()
    planner_of(model).wait()
    step(model, 1, 680)
    assert len(planner_of(model)._sought) == 1
    memo_train.unwrap(model)


def test_a_background_that_fails_is_told_and_the_steps_go_on() -> None:
    model = tight_model()
    step(model, 1, 650)
    (sought,) = planner_of(model)._sought.values()
    sought.call.result()
    sought.call._error = SolverError("the background process ended")
    with pytest.warns(UserWarning, match="650 tokens go on .* SolverError: the background"):
        step(model, 1, 300)
    step(model, 1, 650)
    memo_train.unwrap(model)


def test_lengths_of_a_bucket_go_by_one_plan() -> None:
    model = make_model()
    memo_train.wrap(model)
    for tokens in (1030, 1100, 1150, 1153):
        step(model, 1, tokens)
        assert memo_train.plan(model).policy.tokens == tokens
    longest = [shape.tokens for shape, *_ in planner_of(model)._buckets]
    assert longest == [1152, 1280]
    memo_train.unwrap(model)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_one_profile_predicts_every_length_and_batch(batch: int, alpha: float) -> None:
    """Level 2: peaks on the device and on the host are at most the prediction, and near it."""
    rows = rows_of("varying_peaks.py", str(alpha), str(batch))
    assert len(rows) == 3
    for row in rows:
        assert row["device_peak_bytes"] <= row["predicted_device_bytes"], row
        most_bytes = row["predicted_device_bytes"] - WORK_SPACE_BYTES
        assert row["device_peak_bytes"] >= most_bytes / 1.05, row
        assert row["host_peak_bytes"] <= row["predicted_host_bytes"], row
        assert row["host_peak_bytes"] >= 0.95 * row["predicted_host_bytes"], row
