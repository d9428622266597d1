"""The reference formulation of a layout: an integer programme, solved by PuLP with CBC.

Source: MEMO §bi-level MIP. For problems of some dozens of buffers; the native packer does the rest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pulp

from memo_planner.checks import check_number
from memo_planner.errors import InvalidInput, SolverError
from memo_planner.layout.placement import Placement
from memo_planner.layout.problem import Int64s, PackingProblem

MOST_PAIRS = 20_000
"""Pairs of buffers alive together, each a binary variable, that a programme may have."""


@dataclass(frozen=True, kw_only=True)
class _Programme:
    problem: pulp.LpProblem
    pairs: list[tuple[int, int]]
    below: list[pulp.LpVariable]
    """For each pair: 1 if the first buffer lies below the second."""


def pack_mip(problem: PackingProblem, *, seconds: float = 60.0) -> Placement:
    """The placement with the lowest peak, or the best that CBC finds in `seconds`.

    Its `lower_bound_bytes` is the peak itself where CBC proves that it is the lowest, and otherwise
    the most bytes alive at once. Offsets are computed anew, in whole bytes, from CBC's order.

    Raises: InvalidInput if more than `MOST_PAIRS` pairs live together; SolverError if CBC is
        missing or finds nothing.
    """
    check_number("seconds", seconds)
    begun_s = time.monotonic()
    pairs = _pairs(problem)
    proved = True
    below = np.zeros(0, np.int64)
    if pairs:
        programme = _programme(problem, pairs)
        proved = _solve(programme.problem, float(seconds))
        below = np.array([round(variable.varValue or 0) for variable in programme.below])
    offsets = _offsets(problem, pairs, below)
    bound = problem.lower_bound_bytes
    placement = Placement(
        problem=problem,
        offset_bytes=offsets,
        lower_bound_bytes=bound,
        seconds=time.monotonic() - begun_s,
        nodes=0,
    )
    if not proved:
        return placement
    return Placement(
        problem=problem,
        offset_bytes=offsets.copy(),
        lower_bound_bytes=placement.peak_bytes,
        seconds=placement.seconds,
        nodes=0,
    )


def _pairs(problem: PackingProblem) -> list[tuple[int, int]]:
    pairs = []
    for i in range(len(problem)):
        later = slice(i + 1, None)
        together = (problem.lower[later] < problem.upper[i]) & (
            problem.upper[later] > problem.lower[i]
        )
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(together)]
        if len(pairs) > MOST_PAIRS:
            raise InvalidInput(
                f"the integer programme would have more than {MOST_PAIRS:,} pairs of buffers; "
                "use the native packer"
            )
    return pairs


def _programme(problem: PackingProblem, pairs: list[tuple[int, int]]) -> _Programme:
    """Least peak; of two buffers alive together one lies below the other."""
    unit = int(np.gcd.reduce(problem.padded_bytes))
    sizes = (problem.padded_bytes // unit).tolist()
    room = sum(sizes)
    programme = pulp.LpProblem("layout", pulp.LpMinimize)
    bound = problem.lower_bound_bytes // unit
    peak = programme.add_variable("peak", bound, room)
    offsets = [programme.add_variable(f"a{i}", 0, room - size) for i, size in enumerate(sizes)]
    below = [programme.add_variable(f"z{k}", 0, 1, pulp.LpInteger) for k in range(len(pairs))]
    programme += peak
    for offset, size in zip(offsets, sizes, strict=True):
        programme += offset + size <= peak
    for (i, j), z in zip(pairs, below, strict=True):
        programme += offsets[i] + sizes[i] <= offsets[j] + (1 - z) * room
        programme += offsets[j] + sizes[j] <= offsets[i] + z * room
    return _Programme(problem=programme, pairs=pairs, below=below)


def _solve(programme: pulp.LpProblem, seconds: float) -> bool:
    """Whether CBC proved its answer to be the best."""
    bundled = getattr(pulp, "PULP_CBC_CMD", None)
    path = getattr(bundled, "pulp_cbc_path", None)
    solver = pulp.COIN_CMD(path=path, msg=False, threads=1, timeLimit=seconds, gapRel=0.0)
    if not solver.available():
        raise SolverError("the CBC solver was not found; install it with: pip install pulp[cbc]")
    programme.solve(solver)
    if programme.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        raise SolverError(f"CBC found no placement in {seconds:g} s; use the native packer")
    return bool(programme.sol_status == pulp.LpSolutionOptimal)


def _offsets(problem: PackingProblem, pairs: list[tuple[int, int]], below: Int64s) -> Int64s:
    """Each buffer on top of the highest of those below it."""
    under: list[list[int]] = [[] for _ in range(len(problem))]
    over: list[list[int]] = [[] for _ in range(len(problem))]
    for (i, j), first_is_below in zip(pairs, below.tolist(), strict=True):
        low, high = (i, j) if first_is_below else (j, i)
        under[high].append(low)
        over[low].append(high)
    offsets = np.zeros(len(problem), np.int64)
    waiting = [len(lows) for lows in under]
    ready = [i for i, count in enumerate(waiting) if count == 0]
    placed = 0
    while ready:
        i = ready.pop()
        placed += 1
        tops = [int(offsets[low] + problem.padded_bytes[low]) for low in under[i]]
        offsets[i] = max(tops, default=0)
        for high in over[i]:
            waiting[high] -= 1
            if waiting[high] == 0:
                ready.append(high)
    assert placed == len(problem), f"CBC's order has a cycle: {placed} of {len(problem)} placed"
    return offsets
