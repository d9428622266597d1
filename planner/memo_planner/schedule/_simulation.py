"""What a simulated step came to, at which speeds: seconds, stalls, bytes in use over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memo_planner.checks import check_fields
from memo_planner.errors import InvalidInput
from memo_planner.profile import Link
from memo_planner.schedule._schedule import Kind, Operation, Schedule, Stream

CAUSES = ("copies to host", "copies to device", "collectives", "the end of copies")
"""What compute waits for; the last is copies that outlast the last computation."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Bytes per second of one rank's copies and collectives, with all ranks busy at once.

    Attributes:
        collective_bytes_per_s: None if the schedule has no collectives.
        peak_flops_per_s: what the rank's device can do at most, for MFU; None: unknown.

    Raises: InvalidInput.
    """

    d2h_bytes_per_s: float
    h2d_bytes_per_s: float
    collective_bytes_per_s: float | None = None
    peak_flops_per_s: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, ("d2h_bytes_per_s", "h2d_bytes_per_s"), least=1.0)
        for name in ("collective_bytes_per_s", "peak_flops_per_s"):
            if getattr(self, name) is not None:
                check_fields(self, (name,), least=1.0)

    @classmethod
    def of_link(cls, link: Link, *, peak_flops_per_s: float | None = None) -> Speeds:
        """The speeds a profile measured."""
        return cls(
            d2h_bytes_per_s=link.d2h_bytes_per_s,
            h2d_bytes_per_s=link.h2d_bytes_per_s,
            peak_flops_per_s=peak_flops_per_s,
        )

    def seconds(self, operation: Operation) -> float:
        """What the operation takes once it runs. Raises: InvalidInput: a speed is missing."""
        if not operation.num_bytes:
            return operation.seconds
        if operation.kind is Kind.TO_HOST:
            return operation.num_bytes / self.d2h_bytes_per_s
        if operation.kind is Kind.TO_DEVICE:
            return operation.num_bytes / self.h2d_bytes_per_s
        if self.collective_bytes_per_s is None:
            raise InvalidInput(
                f"the schedule has a collective ({operation}), but Speeds.collective_bytes_per_s "
                "is None; give its speed"
            )
        return operation.num_bytes / self.collective_bytes_per_s


Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryCurve:
    """Bytes in use: `num_bytes[i]` from `times_s[i]` until `times_s[i + 1]`.

    Attributes:
        times_s: [changes + 1] float64, not falling, from 0. num_bytes: [changes + 1] int64.
        by_operation: [changes + 1] int64, the operation that made the change; -1 at the start.
    """

    times_s: Floats
    num_bytes: Ints
    by_operation: Ints

    @property
    def peak_bytes(self) -> int:
        """Most bytes in use."""
        return int(self.num_bytes.max())

    @property
    def peak_operation(self) -> int:
        """The operation that first made it so many; -1 if nothing was ever allocated."""
        return int(self.by_operation[int(self.num_bytes.argmax())])

    @property
    def peak_s(self) -> float:
        """When it was first so many."""
        return float(self.times_s[int(self.num_bytes.argmax())])

    def sampled(self, num_samples: int, step_s: float) -> Ints:
        """Most bytes in each of `num_samples` equal parts of `step_s` seconds."""
        edges = np.linspace(0.0, step_s, num_samples + 1)
        first = np.searchsorted(self.times_s, edges[:-1], side="right") - 1
        # All changes at 0 s belong to the first part; the search finds the last of them.
        first[0] = 0
        # A part without a change still has the level that it begins with.
        last = np.maximum(np.searchsorted(self.times_s, edges[1:], side="right"), first + 1)
        parts = [self.num_bytes[i:j].max() for i, j in zip(first, last, strict=True)]
        return np.array(parts, np.int64)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What the operations of a schedule do to one memory: arrays [operations] in start order."""

    ids: Ints
    alloc_s: Floats
    alloc_bytes: Ints
    free_s: Floats
    free_bytes: Ints

    def curve(self, where: str, start_bytes: int) -> MemoryCurve:
        """The bytes over time; at one moment, changes come in start order.

        Raises: InvalidInput if more is freed than was allocated until then.
        """
        count = len(self.ids)
        position = np.arange(count)
        times = np.concatenate([self.alloc_s, self.free_s])
        # At one moment an operation allocates before it frees.
        ranks = np.concatenate([2 * position, 2 * position + 1])
        changes = np.concatenate([self.alloc_bytes, -self.free_bytes])
        ids = np.concatenate([self.ids, self.ids])
        moved = np.flatnonzero(changes)
        order = moved[np.lexsort((ranks[moved], times[moved]))]
        levels = start_bytes + np.cumsum(changes[order])
        # What is there at the start, the state, is never freed.
        if len(levels) and levels.min() < start_bytes:
            culprit = int(ids[order[int((levels < start_bytes).argmax())]])
            raise InvalidInput(
                f"operation {culprit} frees more bytes on the {where} than are allocated there by "
                "then; an operation may free only what one before it, or itself, has allocated"
            )
        return MemoryCurve(
            times_s=np.concatenate([[0.0], times[order]]),
            num_bytes=np.concatenate([[start_bytes], levels]).astype(np.int64),
            by_operation=np.concatenate([[-1], ids[order]]).astype(np.int64),
        )


@dataclass(frozen=True, kw_only=True)
class Stall:
    """Compute stood still for `seconds` before `operation`, because of one of `CAUSES`."""

    operation: int
    cause: str
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulation:
    """One step of `schedule` at `speeds` on a clock.

    Attributes:
        starts_s, ends_s: [operations] float64, seconds since the step began.
        busy_s: seconds that each stream works. stalls: in the order of the step.
        device, host: bytes in use over time, the device's with the state.
    """

    schedule: Schedule
    speeds: Speeds
    step_s: float
    starts_s: Floats
    ends_s: Floats
    busy_s: Mapping[Stream, float]
    stalls: tuple[Stall, ...]
    device: MemoryCurve
    host: MemoryCurve

    @property
    def compute_s(self) -> float:
        """Seconds of computation."""
        return self.busy_s[Stream.COMPUTE]

    @property
    def stall_s(self) -> float:
        """Seconds of the step without computation."""
        return self.step_s - self.compute_s

    @property
    def stall_s_by_cause(self) -> dict[str, float]:
        """Seconds of stalls for each of `CAUSES`."""
        total = dict.fromkeys(CAUSES, 0.0)
        for stall in self.stalls:
            total[stall.cause] += stall.seconds
        return total

    @property
    def mfu(self) -> float | None:
        """The model's FLOPs over what the device could have done in the step; None if unknown.

        Source: MEMO §set-up of the experiments.
        """
        flops, peak = self.schedule.flops, self.speeds.peak_flops_per_s
        if flops is None or peak is None or self.step_s == 0:
            return None
        return flops / (self.step_s * peak)
