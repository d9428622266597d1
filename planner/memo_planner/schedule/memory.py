"""Bytes in use over the time of a simulated step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memo_planner.errors import InvalidInput

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
        first[0] = 0
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
        ranks = np.concatenate([2 * position, 2 * position + 1])
        changes = np.concatenate([self.alloc_bytes, -self.free_bytes])
        ids = np.concatenate([self.ids, self.ids])
        moved = np.flatnonzero(changes)
        order = moved[np.lexsort((ranks[moved], times[moved]))]
        levels = start_bytes + np.cumsum(changes[order])
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
