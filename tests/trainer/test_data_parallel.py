"""Two ranks compute what one process does on the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_small_llama.py")
ROOT = Path(__file__).resolve().parents[2]
# The ranks' gradients are summed in another order than one process's: fp32 rounding, five steps.
LOSS_RTOL = 1e-5
WEIGHT_ATOL = 1e-5


def run_training(out_dir: Path, num_ranks: int) -> list[dict[str, Any]]:
    """Start the script as a user would; its metrics."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(num_ranks)]
    command = [*(launcher if num_ranks > 1 else [sys.executable]), str(SCRIPT), str(out_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (out_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_ranks_give_the_losses_and_weights_of_one_process(tmp_path: Path) -> None:
    alone = run_training(tmp_path / "alone", num_ranks=1)
    together = run_training(tmp_path / "together", num_ranks=2)
    assert [line["step"] for line in alone] == [1, 2, 3, 4, 5]
    for one, two in zip(alone, together, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=LOSS_RTOL)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=LOSS_RTOL)
        assert two["num_tokens"] == one["num_tokens"] == 2 * 3 * 40
    weights = load_file(tmp_path / "alone" / "model.safetensors")
    for name, weight in load_file(tmp_path / "together" / "model.safetensors").items():
        torch.testing.assert_close(weight, weights.pop(name), rtol=0, atol=WEIGHT_ATOL)
    assert not weights
