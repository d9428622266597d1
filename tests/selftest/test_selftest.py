"""The self-test as users start it: it passes here, alone and on two ranks, and it can fail."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FAULTY = Path(__file__).with_name("faulty.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WAYS = ("swap", "prefetch", "release")


def run(path: Path, *command: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, what was written, and what was printed."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "planner")])
    done = subprocess.run(
        [sys.executable, *command, "--json", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "140"},
    )
    assert path.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(path.read_text()), done.stdout + done.stderr


def failed(result: dict[str, Any], rank: int = 0, device: str = "cpu") -> set[str]:
    scenarios = result["ranks"][rank]["devices"][device]
    return {name for name, each in scenarios.items() if each["outcome"].startswith("failed: ")}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    path = tmp_path_factory.mktemp("selftest") / "result.json"
    return run(path, "-m", "memo_train.selftest")


@pytest.mark.slow
def test_everything_holds_on_the_cpu_device(sound) -> None:
    code, result, _ = sound
    assert (code, result["passed"], result["format"], result["version"]) == (
        0,
        True,
        "memo-selftest",
        3,
    )
    assert result["counts"]["failed"] == 0
    scenarios = result["ranks"][0]["devices"]["cpu"]
    for name, each in scenarios.items():
        cannot = name.endswith("late compute") or name == "side by side"
        assert each["outcome"].startswith("not supported: ") == cannot, name
        assert cannot or each["outcome"] == "passed"
    for way in WAYS:
        late = scenarios[f"{way} behind late copies"]
        assert 0 < late["late_rounds"] <= late["rounds"] == 20
    assert scenarios["gradients by hooks"]["swapped_tensors"] > 20
    link = scenarios["link"]
    assert link["num_ranks"] == 1
    assert min(rate for name, rate in link.items() if name.endswith("_per_s")) > 1e6


@pytest.mark.slow
def test_modes_do_what_they_say(sound) -> None:
    scenarios = sound[1]["ranks"][0]["devices"]["cpu"]
    tiles = scenarios["gradients by wrap"]["modes"]
    assert tiles["keep"]["d2h_bytes"] == 0
    assert tiles["swap"]["d2h_bytes"] == tiles["swap"]["h2d_bytes"] > 1e6
    assert tiles["recompute"]["swap_tiles"] == 0 < tiles["recompute"]["recompute_tiles"]
    peaks = scenarios["planned peak"]["modes"]
    for each in peaks.values():
        assert 0.5 * each["planned_peak_bytes"] < each["device_peak_bytes"]
        assert each["device_peak_bytes"] <= each["limit_bytes"]
        # Less what others have come to use meanwhile.
        assert each["limit_bytes"] == pytest.approx(1.15 * each["planned_room_bytes"], rel=1e-3)
        assert each["torch_peak_bytes"] is each["driver_peak_bytes"] is None
    assert peaks["recompute"]["device_peak_bytes"] < peaks["keep"]["device_peak_bytes"]
    steps = scenarios["step"]["modes"]
    assert list(steps) == ["plain", "keep", "swap", "recompute"]
    assert steps["plain"]["over_plain"] == 1
    assert all(0 < each["least_s"] <= each["median_s"] for each in steps.values())


@pytest.mark.slow
def test_quick_proves_and_times_nothing(tmp_path: Path) -> None:
    code, result, printed = run(tmp_path / "result.json", "-m", "memo_train.selftest", "--quick")
    assert (code, result["passed"], result["quick"]) == (0, True, True)
    scenarios = result["ranks"][0]["devices"]["cpu"]
    assert {"link", "step"}.isdisjoint(scenarios)
    for name in ("swap behind late copies", "gradients by wrap", "planned peak"):
        assert scenarios[name]["outcome"] == "passed"
    assert "PASSED: " in printed


def test_the_allocator_needs_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    command = [sys.executable, "-m", "memo_train.selftest", "--allocator", "memo"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "planner")])
    env = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert done.returncode == 2
    assert "--allocator memo: this process sees no GPU" in done.stderr


@pytest.mark.slow
def test_people_can_read_it_and_it_names_nobody(sound) -> None:
    _, result, printed = sound
    text = json.dumps(result)
    assert "PASSED: " in printed
    for word in ("swap behind late copies", "recompute", "one way", "planned peak"):
        assert word in printed
    for secret in (socket.gethostname(), str(ROOT), str(Path.home())):
        assert secret not in text


@pytest.mark.slow
def test_a_changed_byte_fails(tmp_path: Path) -> None:
    code, result, printed = run(tmp_path / "result.json", str(FAULTY), "flip_a_byte")
    assert (code, result["passed"]) == (1, False)
    assert failed(result) >= {*(f"{way} behind late copies" for way in WAYS), "gradients by hooks"}
    assert "gradients by wrap" in failed(result)
    outcome = result["ranks"][0]["devices"]["cpu"]["swap behind late copies"]["outcome"]
    assert outcome == "failed: round 0: 1 of 7680 values are not what was sent"
    assert "FAILED: " in printed
    assert outcome in printed


@pytest.mark.slow
def test_a_plan_that_is_not_kept_fails(tmp_path: Path) -> None:
    code, result, _ = run(tmp_path / "result.json", str(FAULTY), "plan_too_little")
    assert (code, failed(result)) == (1, {"planned peak"})


@pytest.mark.slow
def test_a_device_that_wrap_refuses_is_not_supported_and_not_passed(tmp_path: Path) -> None:
    code, result, _ = run(tmp_path / "result.json", str(FAULTY), "refuse_to_wrap")
    assert (code, result["counts"]["failed"]) == (0, 0)
    for name in ("gradients by wrap", "planned peak", "step"):
        outcome = result["ranks"][0]["devices"]["cpu"][name]["outcome"]
        assert outcome == "not supported: wrap refuses the model here: no wrap for this device"


@pytest.mark.slow
def test_two_ranks_write_one_result(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    code, result, printed = run(path, *TORCHRUN, "-m", "memo_train.selftest")
    assert (code, result["passed"]) == (0, True)
    assert [rank["rank"] for rank in result["ranks"]] == [0, 1]
    links = [rank["devices"]["cpu"]["link"] for rank in result["ranks"]]
    assert links[0]["num_ranks"] == links[1]["num_ranks"] == 2
    assert links[0]["d2h_all_ranks_bytes_per_s"] == links[1]["d2h_all_ranks_bytes_per_s"] > 1e6
    assert printed.count("PASSED: ") == 1
    assert "rank 1 cpu" in printed


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["flip_on_rank_1", "refuse_on_rank_1"])
def test_one_rank_s_fault_fails_the_whole(tmp_path: Path, fault: str) -> None:
    code, result, _ = run(tmp_path / "result.json", *TORCHRUN, str(FAULTY), fault)
    assert (code, result["passed"]) == (1, False)
    refused = {"link"} if fault == "refuse_on_rank_1" else set()
    assert failed(result, rank=0) == refused
    assert failed(result, rank=1) >= {"swap behind late copies", "gradients by wrap", *refused}
