"""The layout in two levels, as the paper solves it: the reference for steps of some dozen requests.

Level 1 packs the requests that live inside one pass over one block, each different pass once. Level
2 packs the rest, with each pass as one request of its level-1 peak. Both are integer programmes.

Source: MEMO §bi-level MIP.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from memo_planner.checks import check_number
from memo_planner.layout.mip import pack_mip
from memo_planner.layout.placement import Placement
from memo_planner.layout.problem import Int64s, PackingProblem
from memo_planner.layout.step import step_problem
from memo_planner.trace.requests import Requests


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
