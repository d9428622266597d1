"""The paper's layout in two levels, by integer programmes (PuLP with CBC): the reference.

Level 1 packs the requests that live inside one pass over one block, each different pass once. Level
2 packs the rest, with each pass as one request of its level-1 peak. It is for steps of some dozen
requests; the native packer does the rest.

Source: MEMO §bi-level MIP.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pulp

from memo_planner.checks import check_number
from memo_planner.errors import InvalidInput, SolverError
from memo_planner.layout._packing import step_problem
from memo_planner.layout._problem import Int64s, PackingProblem, Placement
from memo_planner.trace import Requests

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
    # CBC keeps constraints up to an absolute tolerance, so numbers are to be small.
    unit = int(np.gcd.reduce(problem.padded_bytes))
    sizes = (problem.padded_bytes // unit).tolist()
    # Above any peak, so that of each pair the constraint of the other order says nothing.
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
    # PuLP's own CBC where it brings one, else that on the PATH.
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Requests that live wholly inside one pass over one block (or inside one stretch between).

    members: int64 [k] indices into the step's requests.
    shape: equal for groups that have the same solution: order of events, and sizes.
    """

    members: Int64s
    shape: bytes


def find_groups(requests: Requests) -> list[Group]:
    """The groups of a step, in order of time. Requests that outlive their pass are in none.

    A pass is a run of requests with one phase and block; it ends where the next one begins.
    """
    if len(requests) == 0:
        return []
    key = np.stack([requests.phases, requests.blocks])
    begins = np.concatenate([[True], (key[:, 1:] != key[:, :-1]).any(axis=0)])
    starts = np.flatnonzero(begins)
    ends = np.append(requests.malloc_times[starts[1:]], requests.end_time + 1)
    run_of = np.cumsum(begins) - 1
    inside = np.flatnonzero(requests.free_times <= ends[run_of])
    cuts = np.flatnonzero(np.diff(run_of[inside])) + 1
    return [_group(requests, members) for members in np.split(inside, cuts) if len(members)]


def _group(requests: Requests, members: Int64s) -> Group:
    times = np.concatenate([requests.malloc_times[members], requests.free_times[members]])
    ranks = np.unique(times, return_inverse=True)[1]
    shape = ranks.astype(np.int64).tobytes() + requests.size_bytes[members].tobytes()
    return Group(members=members, shape=shape)


def lay_out_by_levels(
    requests: Requests, *, alignment_bytes: int = 1, seconds: float = 60.0
) -> Placement:
    """Addresses for all requests of a step by PuLP, each programme within `seconds`.

    A pass takes its level-1 peak for as long as it lasts, so the peak may be above that of
    `lay_out_step`; `gap` says how far it is above the most bytes alive at once.
    Raises: InvalidInput if a level has too many pairs of requests; SolverError.
    """
    check_number("seconds", seconds)
    begun_s = time.monotonic()
    step, groups = step_problem(requests, alignment_bytes), find_groups(requests)
    first = {group.shape: group for group in groups}
    solved = {shape: pack_mip(_alone(step, g), seconds=seconds) for shape, g in first.items()}
    is_loose = np.ones(len(step), np.bool_)
    for group in groups:
        is_loose[group.members] = False
    loose = np.flatnonzero(is_loose)
    packed = pack_mip(_second_level(step, loose, groups, solved), seconds=seconds)
    offsets = np.zeros(len(step), np.int64)
    offsets[loose] = packed.offset_bytes[: len(loose)]
    for base, group in zip(packed.offset_bytes[len(loose) :].tolist(), groups, strict=True):
        offsets[group.members] = base + solved[group.shape].offset_bytes
    return Placement(
        problem=step,
        offset_bytes=offsets,
        lower_bound_bytes=step.lower_bound_bytes,
        seconds=time.monotonic() - begun_s,
        nodes=0,
    )


def _alone(step: PackingProblem, group: Group) -> PackingProblem:
    members = group.members
    return PackingProblem(
        ids=tuple(step.ids[i] for i in members.tolist()),
        lower=step.lower[members],
        upper=step.upper[members],
        size_bytes=step.size_bytes[members],
        alignment_bytes=step.alignment_bytes,
    )


def _second_level(
    step: PackingProblem, loose: Int64s, groups: list[Group], solved: dict[bytes, Placement]
) -> PackingProblem:
    """The requests on their own, then each group as one of its level-1 peak."""
    lower = [int(step.lower[group.members].min()) for group in groups]
    upper = [int(step.upper[group.members].max()) for group in groups]
    sizes = [solved[group.shape].peak_bytes for group in groups]
    return PackingProblem(
        ids=(*(f"r{i}" for i in loose.tolist()), *(f"g{k}" for k in range(len(groups)))),
        lower=np.concatenate([step.lower[loose], np.array(lower, np.int64)]),
        upper=np.concatenate([step.upper[loose], np.array(upper, np.int64)]),
        size_bytes=np.concatenate([step.size_bytes[loose], np.array(sizes, np.int64)]),
        alignment_bytes=step.alignment_bytes,
    )
