"""The self-test passes on this machine, writes its JSON, and can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memo_train.selftest import copies, gradients, report
from memo_train.selftest.__main__ import main
from memo_train.selftest.place import cpu_place

torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`run()`: the exit code, and what was written."""
    path = tmp_path / "selftest.json"
    monkeypatch.setattr("sys.argv", ["selftest", "--json", str(path)])
    monkeypatch.setattr(copies, "_SPEED_BYTES", 1 << 20)
    return lambda: (main(), json.loads(path.read_text()))


def test_everything_holds_on_the_cpu_device(run, capsys: pytest.CaptureFixture[str]) -> None:
    code, written = run()
    assert (code, written["passed"], written["format"]) == (0, True, "memo-selftest")
    cpu = written["devices"]["cpu"]
    assert cpu["hooks"]["swapped_tensors"] > 20
    assert all(speed > 1e6 for speed in cpu["speeds"].values())
    peaks = cpu["runtime"]["peaks"]
    assert peaks["keep"]["actual_peak_bytes"] > peaks["recompute"]["actual_peak_bytes"] > 0
    if not written["machine"]["cuda"]["gpus"]:
        assert list(written["devices"]) == ["cpu"]
        assert "no part of this ran on a GPU: " in capsys.readouterr().out


def test_a_wrong_gradient_fails(run, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack = gradients._SwapHooks.unpack

    def wrong(self: gradients._SwapHooks, packed: object) -> torch.Tensor:
        value = unpack(self, packed)
        return value * 1.5 if value.is_floating_point() else value

    monkeypatch.setattr(gradients._SwapHooks, "unpack", wrong)
    monkeypatch.setattr(report, "by_runtime", lambda place: {"bitwise_equal": True})
    code, written = run()
    assert (code, written["passed"]) == (1, False)
    assert not written["devices"]["cpu"]["hooks"]["bitwise_equal"]


def test_lost_bytes_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    place = cpu_place()
    copy = place.device.copy_to_device
    monkeypatch.setattr(place.device, "copy_to_device", lambda p, h, n: copy(p, h, n - 8))
    assert not copies.bytes_come_back(place)
