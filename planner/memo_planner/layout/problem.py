"""What is to be packed: buffers with known lifetimes and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memo_planner.checks import LARGEST, check_int
from memo_planner.errors import InvalidInput

Int64s = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PackingProblem:
    """Buffers that need addresses so that no two overlap both in time and in space.

    Attributes:
        ids: unique names.
        lower, upper: int64 [buffers]; lifetime `[lower, upper)` in any unit of time.
        size_bytes: int64 [buffers], 1 or more.
        alignment_bytes: offsets are multiples of it, and sizes count as rounded up to it.

    Raises: InvalidInput, naming the buffer and the value.
    """

    ids: tuple[str, ...]
    lower: Int64s
    upper: Int64s
    size_bytes: Int64s
    alignment_bytes: int = 1

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "size_bytes"):
            object.__setattr__(self, name, _int64s(name, getattr(self, name), len(self.ids)))
        check_int("alignment_bytes", self.alignment_bytes, 1)
        self._check_unique()
        self._refuse(np.abs(self.lower) > LARGEST, "lower", self.lower, f"within {LARGEST:,}")
        self._refuse(np.abs(self.upper) > LARGEST, "upper", self.upper, f"within {LARGEST:,}")
        self._refuse(self.upper <= self.lower, "upper", self.upper, "above its lower")
        self._refuse(self.size_bytes < 1, "size_bytes", self.size_bytes, "1 or more")
        total = float(np.sum(self.size_bytes, dtype=np.float64))
        if total + float(self.alignment_bytes) * len(self.ids) > LARGEST:
            raise InvalidInput(f"sizes add up to {total:,.0f} bytes; the most is {LARGEST:,}")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def padded_bytes(self) -> Int64s:
        """int64 [buffers]: sizes rounded up to the alignment."""
        return -(-self.size_bytes // self.alignment_bytes) * self.alignment_bytes

    @cached_property
    def lower_bound_bytes(self) -> int:
        """Most bytes alive at once, padding included: no placement has a lower peak."""
        times = np.concatenate([self.upper, self.lower])
        changes = np.concatenate([-self.padded_bytes, self.padded_bytes])
        order = np.argsort(times, kind="stable")  # at equal times, ends come before beginnings
        return int(np.max(np.cumsum(changes[order]), initial=0))

    def _check_unique(self) -> None:
        seen: set[str] = set()
        for name in self.ids if len(set(self.ids)) != len(self.ids) else ():
            if name in seen:
                raise InvalidInput(f"buffer id {name!r} occurs twice; ids must be unique")
            seen.add(name)

    def _refuse(self, bad: NDArray[np.bool_], name: str, values: Int64s, rule: str) -> None:
        if bad.any():
            i = int(np.argmax(bad))
            span = f"[{self.lower[i]:,}, {self.upper[i]:,})"
            raise InvalidInput(
                f"buffer {self.ids[i]!r} (lifetime {span}): {name} is {int(values[i]):,}; "
                f"it must be {rule}"
            )


def _int64s(name: str, values: Any, length: int) -> Int64s:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.shape != (length,) or array.dtype.kind not in "iu":
        raise InvalidInput(
            f"{name} is an array of {array.dtype} with shape {array.shape}; "
            f"expected whole numbers, one for each of {length:,} ids"
        )
    if array.dtype.kind == "u" and (array > LARGEST).any():
        raise InvalidInput(f"{name} holds {int(array.max()):,}; the most is {LARGEST:,}")
    frozen = array.astype(np.int64)
    frozen.flags.writeable = False
    return frozen
