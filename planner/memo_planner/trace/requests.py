"""The requests of one step, as columns: what was asked, when, how long it lived, and by whom."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from memo_planner.checks import LARGEST, check_int
from memo_planner.errors import InvalidInput
from memo_planner.trace.columns import Column, int_column

PHASES = ("before", "forward", "loss", "backward", "optimizer")
"""Parts of a step; `before` is the phase of what lived when the recording began."""

BEFORE = PHASES.index("before")
NOWHERE = -1
"""The block of a request made outside blocks, the tile of one that all tiles share."""

_MOST_REQUESTS = 2**31


@dataclass(frozen=True, kw_only=True, eq=False)
class Requests:
    """Requests to device memory in the order in which they were made; columns of one length [n].

    Time counts events (allocations and frees) from 1; 0 is before the step. A request lives in
    [malloc_times, free_times), half-open; one that outlives the step is freed at `end_time`.

    Attributes:
        ids: unique. size_bytes: 1 or more.
        malloc_times: never falling; 0 exactly for phase `before`. free_times: at most `end_time`.
        phases: index into `PHASES`. blocks, tiles: index, or `NOWHERE`.
        ops: index into `op_names` of the operation that asked; `op_names[0]` is "", not known.
        end_time: the time after the last event.

    Raises: InvalidInput naming the first request that is wrong.
    """

    ids: Column
    malloc_times: Column
    free_times: Column
    size_bytes: Column
    phases: Column
    blocks: Column
    tiles: Column
    ops: Column
    op_names: tuple[str, ...]
    end_time: int

    def __post_init__(self) -> None:
        _check_names(self.op_names)
        check_int("Requests.end_time", self.end_time, 1)
        ranges = {
            "ids": (0, LARGEST),
            "malloc_times": (0, LARGEST),
            "free_times": (0, LARGEST),
            "size_bytes": (1, LARGEST),
            "phases": (0, len(PHASES) - 1),
            "blocks": (NOWHERE, _MOST_REQUESTS),
            "tiles": (NOWHERE, _MOST_REQUESTS),
            "ops": (0, len(self.op_names) - 1),
        }
        for name, (least, most) in ranges.items():
            column = int_column(name, getattr(self, name), least, most)
            object.__setattr__(self, name, column)
        self._check_lengths(tuple(ranges))
        self._check_ids()
        self._check_lifetimes()
        if float(self.size_bytes.sum(dtype=np.float64)) > LARGEST:
            raise InvalidInput(f"all requests together ask for more than {LARGEST:,} bytes")

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Requests):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(np.array_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Requests({len(self):,} requests, end_time={self.end_time:,})"

    @property
    def outlive(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whether each request lives on after the step: bool [n]."""
        return np.asarray(self.free_times == self.end_time)

    def live_bytes(self) -> Column:
        """Bytes in live requests at each time from 0 to `end_time` - 1: int64 [end_time]."""
        times = np.concatenate([self.malloc_times, self.free_times])
        steps = np.concatenate([self.size_bytes, -self.size_bytes])
        changes = np.zeros(self.end_time + 1, dtype=np.int64)
        np.add.at(changes, times, steps)
        return np.cumsum(changes)[:-1]

    def peak_bytes(self) -> int:
        """Most bytes that live at once: no layout can do with less."""
        return int(self.live_bytes().max(initial=0))

    def _check_lengths(self, names: tuple[str, ...]) -> None:
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            raise InvalidInput(f"the columns of requests differ in length: {lengths}")
        # `live_bytes` has an entry a time; a time that no event takes would only make it larger.
        if self.end_time > 2 * len(self) + 2 + _SPARE_TIMES:
            raise InvalidInput(
                f"end_time is {self.end_time:,} for {len(self):,} requests; time counts events"
            )

    def _check_ids(self) -> None:
        order = np.argsort(self.ids, kind="stable")
        same = self.ids[order][1:] == self.ids[order][:-1]
        if same.any():
            at = int(order[1:][same][0])
            raise InvalidInput(f"the id {int(self.ids[at])} occurs twice; ids must be unique")

    def _check_lifetimes(self) -> None:
        made, freed = self.malloc_times, self.free_times
        self._refuse(freed <= made, "is freed at {freed}, but made at {made}")
        self._refuse(freed > self.end_time, "is freed at {freed}, after the step's end")
        self._refuse(np.diff(made, prepend=0) < 0, "is made at {made}, before the one above it")
        is_before = self.phases == BEFORE
        self._refuse(is_before != (made == 0), "is made at {made}; 0 belongs to phase before")

    def _refuse(self, wrong: np.ndarray[tuple[int], np.dtype[np.bool_]], why: str) -> None:
        if not wrong.any():
            return
        at = int(wrong.argmax())
        times = {"made": int(self.malloc_times[at]), "freed": int(self.free_times[at])}
        raise InvalidInput(f"request {int(self.ids[at])} {why.format(**times)}")


_SPARE_TIMES = 2**20


def _check_names(names: object) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidInput("op_names must be a tuple of strings")
    if not names or names[0] != "" or len(set(names)) < len(names):
        raise InvalidInput('op_names must begin with "" (not known) and hold each name once')
