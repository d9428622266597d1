"""The link's speed, alone and under load, on one rank and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import memo_train
from memo_planner.trace import LinkRates, ProfileFile
from memo_train.device import get_cpu_device
from memo_train.trace import measure_link, measure_link_rates
from memo_train.trace._fake_device import FakeDevice, Speeds
from memo_train.trace._profile import measure_profile_file
from tests.runtime.causal_lms import MODELS
from tests.runtime.policies import wrapped_of

ROOT = Path(__file__).resolve().parents[2]
RANKS = """
import json, sys
from dataclasses import asdict
from pathlib import Path
import torch.distributed as dist
from memo_train.device import get_cpu_device
from memo_train.trace._link import measure_link_rates
dist.init_process_group("gloo")
rank = dist.get_rank()
device = get_cpu_device()
device.set_bandwidth(1e8 * (rank + 1), 2e8)
rates = measure_link_rates(device)
found = asdict(rates) | {"left": device.counters().host_used_bytes}
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""


def test_each_direction_has_its_own_rate_also_under_load() -> None:
    device = get_cpu_device()
    device.set_bandwidth(2e8, 8e8)
    try:
        rates = measure_link_rates(device)
    finally:
        device.set_bandwidth(None, None)
    assert rates.num_ranks == 1
    for name, value in asdict(rates).items():
        if name.endswith("_bytes_per_s"):
            assert value == pytest.approx(2e8 if name.startswith("d2h") else 8e8, rel=0.35), name
    assert device.counters().host_used_bytes == 0


def test_without_a_limit_copies_run_at_the_speed_of_memory() -> None:
    rates = measure_link_rates(get_cpu_device())
    assert min(rates.d2h_alone_bytes_per_s, rates.h2d_all_ranks_bytes_per_s) > 5e7


@pytest.mark.slow
def test_ranks_measure_together_and_agree_on_the_slowest(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "planner")])
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1100,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first.pop("left") == 0
    rates = LinkRates(**first)
    assert rates.num_ranks == 2
    assert rates.d2h_alone_bytes_per_s == pytest.approx(1e8, rel=0.35)
    assert rates.d2h_all_ranks_bytes_per_s == pytest.approx(1e8, rel=0.35)
    assert rates.h2d_both_bytes_per_s == pytest.approx(2e8, rel=0.35)


def test_a_fake_device_has_the_link_it_was_given() -> None:
    speeds = Speeds(
        flops_per_s=1e12,
        matmul_efficiency=0.5,
        attention_efficiency=0.5,
        memory_bytes_per_s=1e12,
        d2h_bytes_per_s=1e10,
        h2d_bytes_per_s=3e10,
    )
    device = FakeDevice(speeds)
    link, rates = measure_link(device), measure_link_rates(device)
    for given in (link.d2h_bytes_per_s, rates.d2h_alone_bytes_per_s, rates.d2h_both_bytes_per_s):
        assert given == pytest.approx(1e10)
    assert rates.h2d_all_ranks_bytes_per_s == pytest.approx(3e10)


def test_the_link_is_measured_by_what_memory_holds() -> None:
    device = get_cpu_device()
    device.set_host_cap(3 * 2**20)
    try:
        link = measure_link(device)
    finally:
        device.set_host_cap(None)
    assert min(link.d2h_bytes_per_s, link.h2d_bytes_per_s) > 0
    assert device.counters().host_used_bytes == 0


def test_the_measured_profile_s_file_has_flops_and_the_loaded_link(tmp_path: Path) -> None:
    model = memo_train.wrap(MODELS["own"](), alpha=0.5)
    try:
        found = measure_profile_file(wrapped_of(model), 1, 64)
    finally:
        memo_train.unwrap(model)
    found.save(tmp_path / "profile.json")
    assert ProfileFile.load(tmp_path / "profile.json") == found
    assert found.source.kind == "measured"
    assert found.flops is not None
    assert found.flops.pre_flops_per_token > 0
    assert found.link_rates is not None
    assert found.link_rates.num_ranks == 1
