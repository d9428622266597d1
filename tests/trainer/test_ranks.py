"""Two ranks, joined by gloo: what one process computes on the same batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from tests.runtime.ranks import run_ranks
from tests.trainer.tiny import tiny_llama

pytest.importorskip("trl")

SCRIPT = Path(__file__).with_name("train_on_ranks.py")
# The ranks' gradients are summed in another order than one process's: fp32 rounding, five steps.
LOSS_RTOL = 1e-5
pytestmark = pytest.mark.slow


def losses(out: Path, num_ranks: int, *kinds: str) -> dict[str, list[float]]:
    run_ranks(num_ranks, SCRIPT, out, *kinds)
    return {kind: json.loads((out / f"{kind}.json").read_text()) for kind in kinds}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return losses(tmp_path_factory.mktemp("one"), 1, "ddp", "accelerate", "sft")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(out: Path) -> dict[str, list[float]]:
    kinds = ("ddp", "accelerate", "sp", "sp, each its own", "sft, sp", "sft, sp, padding-free")
    # Last: Accelerate takes the CPUs for GPUs from then on.
    return losses(out, 2, *kinds, "fsdp", "sft, sp, fsdp")


@pytest.mark.parametrize("kind", ["ddp", "sp", "sp, each its own", "fsdp"])
def test_two_ranks_have_the_losses_of_one_process(
    kind: str, alone: dict[str, list[float]], two: dict[str, list[float]]
) -> None:
    assert len(alone["ddp"]) == 6
    assert two[kind] == pytest.approx(alone["ddp"], rel=LOSS_RTOL)


@pytest.mark.parametrize("kind", ["sft, sp", "sft, sp, padding-free", "sft, sp, fsdp"])
def test_trl_s_trainer_has_them_where_ranks_share_sequences(
    kind: str, alone: dict[str, list[float]], two: dict[str, list[float]]
) -> None:
    """And counts the same tokens."""
    assert len(alone["sft"]) == 11
    assert two[kind] == pytest.approx(alone["sft"], rel=LOSS_RTOL)


def test_a_loop_with_accelerate_has_them_too(
    alone: dict[str, list[float]], two: dict[str, list[float]]
) -> None:
    found = two["accelerate"]
    assert len(found) == 5
    # At one constant rate, which the trainer lowers after its first step.
    assert found[:2] == pytest.approx(alone["ddp"][:2], rel=LOSS_RTOL)
    assert found == pytest.approx(alone["accelerate"], rel=LOSS_RTOL)


def test_a_sharded_model_is_saved_whole(out: Path, two: dict[str, list[float]]) -> None:
    again = transformers.AutoModelForCausalLM.from_pretrained(out / "fsdp")
    before = tiny_llama()
    for ours, first in zip(again.parameters(), before.parameters(), strict=True):
        assert ours.shape == first.shape
        assert not torch.equal(ours, first)


def test_four_ranks_that_share_sequences_by_two_have_them_too(
    alone: dict[str, list[float]], tmp_path: Path
) -> None:
    assert losses(tmp_path, 4, "sp")["sp"] == pytest.approx(alone["ddp"], rel=LOSS_RTOL)


def test_deepspeed_s_zero_2_has_them_too(alone: dict[str, list[float]], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    found = losses(tmp_path, 2, "deepspeed")["deepspeed"]
    assert found == pytest.approx(alone["ddp"], rel=LOSS_RTOL)
