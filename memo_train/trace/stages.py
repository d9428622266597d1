"""Seconds and device bytes of every stage of a step, noted as the step goes by."""

from __future__ import annotations

from collections import defaultdict

from memo_train.device.device import Device
from memo_train.runtime.observe import NOWHERE


class StageRecorder:
    """An observer (see `runtime.observe`): sums seconds and keeps the peak of every stage.

    seconds[stage]: s, summed, without waiting for copies. peak_bytes[stage]: most device bytes
    above those in use when the recorder was made.
    """

    def __init__(self, device: Device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak_bytes: dict[str, int] = defaultdict(int)
        self._device = device
        self._before_bytes = device.counters().device_used_bytes
        self._stage = "between"
        self._since = self._computed_s()
        device.reset_peak()

    def __call__(self, stage: str, block: int = NOWHERE, tile: int = NOWHERE) -> None:
        """`stage` begins: note what the one before it took."""
        if stage == self._stage:
            return
        now = self._computed_s()
        self.seconds[self._stage] += now - self._since
        peak = self._device.counters().device_peak_bytes - self._before_bytes
        self.peak_bytes[self._stage] = max(self.peak_bytes[self._stage], peak)
        self._device.reset_peak()
        self._stage, self._since = stage, self._computed_s()

    def _computed_s(self) -> float:
        return self._device.now() - self._device.counters().stall_s
