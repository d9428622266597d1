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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "accelerate"])
def test_two_ranks_have_the_losses_of_one_process(kind: str, tmp_path: Path) -> None:
    alone = losses(kind, tmp_path / "alone", 1)
    together = losses(kind, tmp_path / "together", 2)
    assert len(alone) >= 5
    assert together == pytest.approx(alone, rel=LOSS_RTOL)


@pytest.mark.slow
def test_two_ranks_that_share_sequences_have_the_losses_of_one_process(tmp_path: Path) -> None:
    alone = losses("ddp", tmp_path / "alone", 1)
    assert losses("sp", tmp_path / "two", 2) == pytest.approx(alone, rel=LOSS_RTOL)
    assert losses("sp", tmp_path / "four", 4) == pytest.approx(alone, rel=LOSS_RTOL)


@pytest.mark.slow
def test_deepspeed_s_zero_2_has_them_too(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    alone = losses("ddp", tmp_path / "alone", 1)
    together = losses("deepspeed", tmp_path / "together", 2)
    assert together == pytest.approx(alone, rel=LOSS_RTOL)
