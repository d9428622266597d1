"""One line of figures for each step, in a file and on a progress bar."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One optimiser step. Bytes, copies and stalls are rank 0's; loss and tokens are the run's.

    Attributes:
        step: counted from 1.
        loss: mean over the step's predicted tokens on all ranks.
        grad_norm: before clipping.
        num_tokens: input tokens of the step on all ranks.
        seconds: wall time of the step.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    num_tokens: int
    seconds: float
    device_peak_bytes: int
    host_peak_bytes: int
    d2h_copies: int
    h2d_copies: int
    stalls: int
    stall_s: float

    @property
    def tokens_per_s(self) -> float:
        """Input tokens per second of wall time."""
        return self.num_tokens / self.seconds

    def as_json(self) -> str:
        """One line of strict JSON; a norm that is not finite becomes null."""
        values = {**asdict(self), "tokens_per_s": self.tokens_per_s}
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        return json.dumps(finite, allow_nan=False)


class MetricsLog:
    """Writes steps to a JSON-lines file and a progress bar; either may be off.

    Use as a context manager: leaving it closes both.
    """

    def __init__(self, path: Path | None, num_steps: int, *, progress: bool) -> None:
        self._file = path.open("w", encoding="utf-8") if path is not None else None
        self._bar = tqdm(total=num_steps, unit="step", disable=not progress, dynamic_ncols=True)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()

    def write(self, metrics: StepMetrics) -> None:
        """Add one step; the file holds it when this returns."""
        if self._file is not None:
            self._file.write(metrics.as_json() + "\n")
            self._file.flush()
        self._bar.set_postfix_str(
            f"loss {metrics.loss:.4f}, {metrics.tokens_per_s:,.0f} tokens/s, "
            f"device {metrics.device_peak_bytes / GIB:.3f} GiB, "
            f"host {metrics.host_peak_bytes / GIB:.3f} GiB, stalls {metrics.stalls}",
            refresh=False,
        )
        self._bar.update()
