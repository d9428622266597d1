"""The layout of a whole recorded step, in two levels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memo_planner.checks import check_number
from memo_planner.layout.levels import Group, SecondLevel, find_groups, open_groups
from memo_planner.layout.packing import DEFAULT_SECONDS, Effort, pack
from memo_planner.layout.placement import Placement
from memo_planner.layout.problem import Int64s, PackingProblem
from memo_planner.trace.requests import Requests

Solver = Callable[[PackingProblem, float, Effort], Placement]
"""Packs one level in at most so many seconds with so much effort."""

_WIDTHS = (1, 2, 3, 5, 9, 17)


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """A placement of every request of a step, and how the levels came to it.

    Attributes:
        num_groups: groups found; num_shapes: different ones, each packed once.
        num_opened: groups whose requests the second level packed one by one, because a box would
            have made the peak higher than it has to be.
    """

    placement: Placement
    num_groups: int
    num_shapes: int
    num_opened: int


def native(problem: PackingProblem, seconds: float, effort: Effort) -> Placement:
    """The native packer as a solver of one level."""
    return pack(problem, seconds=seconds, effort=effort)


def lay_out_step(
    requests: Requests,
    *,
    alignment_bytes: int = 1,
    seconds: float = DEFAULT_SECONDS,
    solver: Solver = native,
) -> StepLayout:
    """Addresses for all requests of a step, with the lowest peak that two levels and time give.

    Level 1 packs the requests that live inside one pass over one block, each different pass once.
    Level 2 packs the rest, with each pass as one request of its level-1 peak. Groups that would
    raise the peak above the most bytes alive at once are opened; as long as the peak stays above
    that, so are more groups beside them.

    Raises: InvalidInput; SolverError.
    Source: MEMO §bi-level MIP.
    """
    begun_s = time.monotonic()
    until_s = begun_s + check_number("seconds", seconds)
    step = step_problem(requests, alignment_bytes)
    levels = _Levels(step=step, groups=find_groups(requests), solver=solver, until_s=until_s)
    return levels.lay_out(begun_s)


def step_problem(requests: Requests, alignment_bytes: int = 1) -> PackingProblem:
    """All requests of a step as one packing problem. Raises: InvalidInput."""
    return PackingProblem(
        ids=tuple(map(str, requests.ids.tolist())),
        lower=requests.malloc_times,
        upper=requests.free_times,
        size_bytes=requests.size_bytes,
        alignment_bytes=alignment_bytes,
    )


class _Levels:
    """Packs the two levels of one step, at several widths of opening."""

    def __init__(
        self, step: PackingProblem, groups: list[Group], solver: Solver, until_s: float
    ) -> None:
        self._step = step
        self._groups = groups
        self._solver = solver
        self._until_s = until_s
        first = {group.shape: group for group in groups}
        self._solved = {
            shape: self._solve(_alone(step, group), Effort.SEARCH) for shape, group in first.items()
        }

    def lay_out(self, begun_s: float) -> StepLayout:
        """The best layout over all widths; the first one whose peak is the lower bound."""
        levels = self._second_levels()
        best_level, best = levels[0], self._at(levels[0], Effort.GLANCE, begun_s)
        attempts = [(level, Effort.GLANCE) for level in levels[1:]]
        attempts += [(level, Effort.FIT) for level in (*levels[1:], levels[0])]
        for level, effort in attempts:
            if self._is_enough(best):
                return best
            layout = self._at(level, effort, begun_s)
            if layout.placement.peak_bytes < best.placement.peak_bytes:
                best_level, best = level, layout
        if self._is_enough(best):
            return best
        last = self._at(best_level, Effort.SEARCH, begun_s)
        return min(best, last, key=lambda layout: layout.placement.peak_bytes)

    def _is_enough(self, layout: StepLayout) -> bool:
        """Whether no lower peak exists, or no time is left to look for one."""
        return layout.placement.gap == 0 or self._left_s() <= 0

    def _second_levels(self) -> list[SecondLevel]:
        """From few loose requests to many, at least one."""
        peak_of = {shape: placement.peak_bytes for shape, placement in self._solved.items()}
        levels = [open_groups(self._step, self._groups, peak_of, width) for width in _WIDTHS]
        return [
            level
            for k, level in enumerate(levels)
            if k == 0 or len(level.boxes) < len(levels[k - 1].boxes)
        ]

    def _at(self, level: SecondLevel, effort: Effort, begun_s: float) -> StepLayout:
        packed = self._solve(level.problem, effort)
        placement = Placement(
            problem=self._step,
            offset_bytes=_offsets(self._step, level, packed, self._solved),
            lower_bound_bytes=self._step.lower_bound_bytes,
            seconds=time.monotonic() - begun_s,
            nodes=packed.nodes,
        )
        return StepLayout(
            placement=placement,
            num_groups=len(self._groups),
            num_shapes=len(self._solved),
            num_opened=len(self._groups) - len(level.boxes),
        )

    def _solve(self, problem: PackingProblem, effort: Effort) -> Placement:
        return self._solver(problem, max(0.0, self._left_s()), effort)

    def _left_s(self) -> float:
        return self._until_s - time.monotonic()


def _alone(step: PackingProblem, group: Group) -> PackingProblem:
    members = group.members
    return PackingProblem(
        ids=tuple(step.ids[i] for i in members.tolist()),
        lower=step.lower[members],
        upper=step.upper[members],
        size_bytes=step.size_bytes[members],
        alignment_bytes=step.alignment_bytes,
    )


def _offsets(
    step: PackingProblem, level: SecondLevel, packed: Placement, solved: dict[bytes, Placement]
) -> Int64s:
    """Every request's offset: its own, or its box's plus that within the box."""
    offsets = np.zeros(len(step), np.int64)
    offsets[level.loose] = packed.offset_bytes[: len(level.loose)]
    bases = packed.offset_bytes[len(level.loose) :].tolist()
    for base, group in zip(bases, level.boxes, strict=True):
        offsets[group.members] = base + solved[group.shape].offset_bytes
    return offsets
