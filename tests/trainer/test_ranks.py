"""Two ranks, joined by gloo: what one process computes on the same batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runtime.ranks import run_ranks

SCRIPT = Path(__file__).with_name("train_on_ranks.py")
# The ranks' gradients are summed in another order than one process's: fp32 rounding, five steps.
LOSS_RTOL = 1e-5


def losses(kind: str, out: Path, num_ranks: int) -> list[float]:
    out.mkdir()
    run_ranks(num_ranks, SCRIPT, kind, out)
    found: list[float] = json.loads((out / "losses.json").read_text())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses("ddp", tmp_path_factory.mktemp("one") / "alone", 1)


@pytest.mark.slow
def test_two_ranks_have_the_losses_of_one_process(alone: list[float], tmp_path: Path) -> None:
    assert len(alone) == 6
    assert losses("ddp", tmp_path / "two", 2) == pytest.approx(alone, rel=LOSS_RTOL)


@pytest.mark.slow
def test_a_loop_with_accelerate_has_them_too(alone: list[float], tmp_path: Path) -> None:
    found = losses("accelerate", tmp_path / "two", 2)
    assert len(found) == 5
    # At one constant rate, which the trainer lowers after its first step.
    assert found[:2] == pytest.approx(alone[:2], rel=LOSS_RTOL)
    assert found == pytest.approx(losses("accelerate", tmp_path / "one", 1), rel=LOSS_RTOL)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_that_share_sequences_have_them_too(
    num_ranks: int, alone: list[float], tmp_path: Path
) -> None:
    found = losses("sp", tmp_path / "ranks", num_ranks)
    assert found == pytest.approx(alone, rel=LOSS_RTOL)


@pytest.mark.slow
def test_deepspeed_s_zero_2_has_them_too(alone: list[float], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    found = losses("deepspeed", tmp_path / "two", 2)
    assert found == pytest.approx(alone, rel=LOSS_RTOL)
