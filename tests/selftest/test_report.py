"""What becomes of a device that cannot be opened, and which devices a rank takes."""

from __future__ import annotations

import pytest

from memo_train.device.errors import HookUnavailable
from memo_train.selftest import _report as report
from memo_train.selftest._ranks import Ranks

TWO_GPUS = {"cuda": {"names": ["A", "A"]}}


def test_a_device_that_cannot_be_opened_fails_and_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise HookUnavailable("the cache directory /home/jane/.cache/memo-train cannot be made")

    monkeypatch.setattr(report, "cpu_place", refuse)
    monkeypatch.setattr(report, "describe_machine", lambda: {"cuda": {}})
    begun: list[str] = []
    result = report.run_selftest(started=lambda what, share: begun.append(what))
    assert result["passed"] is False
    assert result["counts"] == {"passed": 0, "failed": 2, "not supported": 0}
    found = result["ranks"][0]["devices"]["cpu"]
    reason = "failed: HookUnavailable: the cache directory memo-train cannot be made"
    assert found["open"]["outcome"] == reason
    assert list(found) == ["open", "link"]
    assert begun == ["cpu: link"]


def test_a_process_alone_takes_all_devices_and_a_rank_its_own_gpu() -> None:
    assert list(report._makers(Ranks(), TWO_GPUS)) == ["cpu", "cuda:0", "cuda:1"]
    ranks = [Ranks(rank=r, num_ranks=3, local_rank=r) for r in range(3)]
    assert [list(report._makers(each, TWO_GPUS)) for each in ranks] == [
        ["cuda:0"],
        ["cuda:1"],
        ["cuda:2"],
    ]
    assert list(report._makers(ranks[0], {"cuda": {}})) == ["cpu"]
