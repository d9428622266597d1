"""What a profile's recorder does between two stages takes time that is neither's."""

from __future__ import annotations

import pytest

from memo_train.device import CpuCounters
from memo_train.trace._fake_device import A800, FakeDevice
from memo_train.trace._steps import StageRecorder


class SlowToCount(FakeDevice):
    """A device of which a look at the counters takes a second, as torch's on a GPU take long."""

    def counters(self) -> CpuCounters:
        self._now_s += 1.0
        return super().counters()


def test_no_stage_contains_a_look_at_the_counters() -> None:
    device = SlowToCount(A800)
    recorder = StageRecorder(device)
    for stage, seconds in (("pre", 0.25), ("post", 0.5), ("between", 0.125)):
        recorder(stage)
        device._now_s += seconds
    device.stall_until(device.now() + 4.0)
    recorder("loss")
    assert recorder.seconds["pre"] == pytest.approx(0.25)
    assert recorder.seconds["post"] == pytest.approx(0.5)
    assert recorder.seconds["between"] == pytest.approx(0.125), "waits for copies are no stage's"
