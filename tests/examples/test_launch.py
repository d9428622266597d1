"""The launchers run, with gloo on this machine's CPU, and go on after a rank was killed."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "examples" / "launch"
SHORT = ("--seq-len", "256", "--steps", "2")
MOST_S = 300
HEADER = ("Environment:", "Longest sequence:", "Device memory:", "Speed:", "predictions")


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env=_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=MOST_S,
    )


def _environment(**changes: str) -> dict[str, str]:
    python = str(Path(sys.executable).parent)
    own = {
        "PATH": os.pathsep.join([python, os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "RESTARTS": "0",
    }
    return {**os.environ, **own, **changes}


def losses(done: subprocess.CompletedProcess[str]) -> dict[int, str]:
    """By step, as the first rank prints them."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return {int(s): loss for s, loss in re.findall(r"step (\d+): loss ([\d.]+)", done.stdout)}


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.*")), ids=lambda path: path.name)
def test_every_header_says_what_to_expect(path: Path) -> None:
    if path.name in ("train.py", "README.md") or path.suffix in (".json", ".pyc"):
        pytest.skip("no launcher")
    head = path.read_text().split("set -euo")[0].split("compute_environment")[0]
    assert all(word in head for word in HEADER), head


LIMITS = ("--device-gib", "0.0625", "--host-gib", "0.125")


def dry_run(plan: Path) -> str:
    """What is printed of a job of two ranks, whose plan is written."""
    job = ("--gpus", "2", "--hardware", "cpu", *LIMITS, "--state", "fsdp2")
    done = run(sys.executable, LAUNCH / "train.py", *SHORT, *job, "--dry-run", "-o", plan)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_dry_run_prints_the_plan_and_what_each_rank_holds(tmp_path: Path) -> None:
    """In one process, without a GPU."""
    printed = dry_run(tmp_path / "plan.json")
    assert "predictions, by memo-plan make" in printed
    assert "--attention-once" in printed
    assert "each rank holds 128 tokens" in printed


@pytest.mark.slow
def test_a_dry_run_s_plan_is_carried_out(tmp_path: Path) -> None:
    """One file: made on a laptop, then loaded by two ranks; another job refuses it."""
    plan = tmp_path / "plan.json"
    dry_run(plan)
    launcher = ("bash", LAUNCH / "torchrun_one_node.sh", *SHORT, "--plan", plan)
    assert sorted(losses(run(*launcher, *LIMITS, GPUS="2"))) == [1, 2]
    other = run(*launcher, "--state", "ddp", GPUS="2")
    assert other.returncode != 0
    assert "setting.zero_stage is 3, this model's is 0" in other.stderr


@pytest.mark.slow
def test_two_nodes_train_on_sequences_of_their_own() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"HEAD": "127.0.0.1", "NODES": "2", "GPUS": "1", "PORT": port}
    script = ["bash", str(LAUNCH / "torchrun_nodes.sh"), *SHORT]
    other = subprocess.Popen(script, cwd=ROOT, env=_environment(**where))
    try:
        first = run(*script, **where)
        assert other.wait(MOST_S) == 0
    finally:
        other.kill()
    assert first.returncode == 0, first.stderr[-3000:]


@pytest.mark.slow
def test_accelerate_launches_it() -> None:
    """Two ranks instead of eight; the file says how many share a sequence."""
    pytest.importorskip("accelerate")
    file = ("--config_file", LAUNCH / "accelerate.yaml")
    two = ("--num_processes", "2", "--parallelism_config_sp_size", "2")
    launcher = (sys.executable, "-m", "accelerate.commands.launch")
    done = run(*launcher, *file, *two, LAUNCH / "train.py", *SHORT)
    assert sorted(losses(done)) == [1, 2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed")
def test_deepspeed_s_stage_3() -> None:
    done = run("bash", LAUNCH / "deepspeed.sh", *SHORT, GPUS="2", DS_ACCELERATOR="cpu")
    assert sorted(losses(done)) == [1, 2]


@pytest.mark.slow
def test_slurm_s_script_starts_a_launcher_on_each_node(tmp_path: Path) -> None:
    """With commands in the place of Slurm's that run what they are given, on one node."""
    (tmp_path / "srun").write_text('#!/bin/bash\nshift\nexec "$@"\n')
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho 127.0.0.1\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    told = {"SLURM_JOB_NODELIST": "one", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    path = os.pathsep.join([str(tmp_path), _environment()["PATH"]])
    where = {"PATH": path, "SLURM_SUBMIT_DIR": str(ROOT), "GPUS": "2", **told}
    done = run("bash", LAUNCH / "slurm.sh", *SHORT, **where)
    assert sorted(losses(done)) == [1, 2]


@pytest.mark.slow
def test_a_restart_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    """A rank is killed in step 4; the losses are those of a run in which none was."""
    steps = ("--seq-len", "256", "--steps", "6", "--state", "fsdp2", "--save-every", "2")
    whole = losses(run("bash", LAUNCH / "torchrun_one_node.sh", *steps, GPUS="2"))
    script = ROOT / "tests" / "examples" / "failing_train.py"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    two = ("--nproc-per-node", "2", "--max-restarts", "1")
    done = run(
        *(*launcher, *two, script, "4", *steps, "--checkpoints", tmp_path / "run"),
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
    )
    again = losses(done)
    assert again == whole
    printed = [int(step) for step in re.findall(r"step (\d+):", done.stdout)]
    assert printed == [1, 2, 3, 3, 4, 5, 6], "steps 1 and 2 were saved"
