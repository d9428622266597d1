"""What the log lines of a trainer say of a wrapped model's steps.

tokens_per_s: tokens of training forwards over seconds of steps, optimiser included, evaluation,
saving and the loading of data left out. mfu: see `FlopsOfModel`; only where the peak of the device
is known. device_peak_gib: the model and all that the steps since the last line had in use at once.
planned_peak_gib: the highest of their plans. host_peak_gib: of the host pool since then. stall_s:
seconds that compute waited for copies. alpha: the swapped share of the last plan's tiles.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memo_planner import InvalidInput
from memo_planner.hardware import this_machine
from memo_train.planning import StepPlanner

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class FlopsOfModel:
    """Floating-point operations of a training step, as MFU counts them.

    6 for each trained number of a matrix and token, 4 for a frozen one, and 6 q_width a pair of
    tokens that attend, forward and backward of scores and values. Attention is causal, a row is one
    document, nothing counts that is computed twice.
    """

    by_token: float
    by_pair: float

    @classmethod
    def of(cls, causal_lm: Any) -> FlopsOfModel | None:
        """None where the configuration does not say: experts are not all used by a token."""
        config = causal_lm.config.get_text_config()
        names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
        sizes: list[Any] = [getattr(config, name, None) for name in names]
        if None in sizes or any("expert" in name for name in vars(config)):
            return None
        layers, heads, hidden = sizes
        width = heads * (getattr(config, "head_dim", None) or hidden // heads)
        looked_up = causal_lm.get_input_embeddings().weight
        head = causal_lm.get_output_embeddings()
        matrices = [p for p in causal_lm.parameters() if p.dim() > 1 and p is not looked_up]
        if head is not None and head.weight is looked_up:
            matrices.append(looked_up)
        return cls(
            by_token=float(sum((6 if p.requires_grad else 4) * p.numel() for p in matrices)),
            by_pair=6.0 * 2 * width * layers,
        )

    def of_shapes(self, shapes: Counter[tuple[int, int]]) -> float:
        """Of training steps, counted by (batch, tokens)."""
        return sum(
            count * batch * (self.by_token * tokens + self.by_pair * tokens * (tokens + 1) / 2)
            for (batch, tokens), count in shapes.items()
        )


class StepFigures:
    """Gathers the figures of a wrapped model's steps from one log line to the next."""

    def __init__(self, planner: StepPlanner) -> None:
        self.planner = planner
        self._device = planner.wrapped.device
        self._older_bytes = 0
        self.highest_bytes = 0
        """Device peak of the whole run."""
        self.begin()

    def begin(self) -> None:
        """Count from here."""
        self._planned_bytes, self._seconds = 0, 0.0
        self.planner.trained_shapes.clear()
        self._device.reset_peak()
        self._stall_s = self._device.counters().stall_s
        where = self._device.torch_device
        model = self.planner.wrapped.parts.causal_lm
        tensors = [t for t in (*model.parameters(), *model.buffers()) if t.device == where]
        self._older_bytes = sum(t.nbytes for t in tensors if not self._device.owns(t.data_ptr()))

    def ran(self) -> None:
        """A forward and backward are over."""
        if self.planner.last is not None:
            peak_bytes = self.planner.last.plan.prediction.device_peak_bytes
            self._planned_bytes = max(self._planned_bytes, peak_bytes)

    def took(self, seconds: float) -> None:
        """A whole step is over, optimiser included."""
        self._seconds += seconds

    def take(self) -> dict[str, float]:
        """The figures since the last call, by their names in log lines; empty without a step."""
        shapes, counters = Counter(self.planner.trained_shapes), self._device.counters()
        seconds, last = self._seconds, self.planner.last
        if not shapes or seconds <= 0 or last is None:
            return {}
        peak_bytes = self._older_bytes + counters.device_peak_bytes
        self.highest_bytes = max(self.highest_bytes, peak_bytes)
        figures = {
            "tokens_per_s": sum(n * batch * tokens for (batch, tokens), n in shapes.items())
            / seconds,
            "device_peak_gib": peak_bytes / _GIB,
            "planned_peak_gib": self._planned_bytes / _GIB,
            "host_peak_gib": counters.host_peak_bytes / _GIB,
            "stall_s": counters.stall_s - self._stall_s,
            "alpha": last.plan.policy.alpha,
        }
        if self._flops is not None and self._peak_flops is not None:
            figures["mfu"] = self._flops.of_shapes(shapes) / seconds / self._peak_flops
        self.begin()
        return figures

    @cached_property
    def _flops(self) -> FlopsOfModel | None:
        return FlopsOfModel.of(self.planner.wrapped.parts.causal_lm)

    @cached_property
    def _peak_flops(self) -> float | None:
        """Of a device in bf16, by its datasheet; None on a CPU and for a GPU not known."""
        if self._device.torch_device.type != "cuda":
            return None
        try:
            return this_machine().peak_flops
        except InvalidInput:
            return None
