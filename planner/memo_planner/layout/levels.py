"""The two levels of a step's layout: what lives inside one pass over one block, and the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memo_planner.layout.problem import Int64s, PackingProblem
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


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondLevel:
    """What the second level packs: requests on their own, and each closed group as one box.

    loose: int64 indices of the requests on their own. boxes: the closed groups.
    problem: the loose requests, then the boxes.
    """

    loose: Int64s
    boxes: tuple[Group, ...]
    problem: PackingProblem


def second_level(
    step: PackingProblem, closed: list[Group], peak_of: dict[bytes, int]
) -> SecondLevel:
    """The second level with `closed` as boxes of their first-level peaks."""
    is_loose = np.ones(len(step), np.bool_)
    for group in closed:
        is_loose[group.members] = False
    loose = np.flatnonzero(is_loose)
    lower = [int(step.lower[group.members].min()) for group in closed]
    upper = [int(step.upper[group.members].max()) for group in closed]
    sizes = [peak_of[group.shape] for group in closed]
    problem = PackingProblem(
        ids=(*(f"r{i}" for i in loose.tolist()), *(f"g{k}" for k in range(len(closed)))),
        lower=np.concatenate([step.lower[loose], np.array(lower, np.int64)]),
        upper=np.concatenate([step.upper[loose], np.array(upper, np.int64)]),
        size_bytes=np.concatenate([step.padded_bytes[loose], np.array(sizes, np.int64)]),
        alignment_bytes=step.alignment_bytes,
    )
    return SecondLevel(loose=loose, boxes=tuple(closed), problem=problem)


def open_groups(
    step: PackingProblem, groups: list[Group], peak_of: dict[bytes, int], width: int
) -> SecondLevel:
    """The second level whose lower bound is the step's, with as few boxes opened as that takes.

    Where a box raises the bound, it and `width - 1` groups on either side of it are opened: a few
    more loose requests leave a packer more freedom just where memory is tightest.
    """
    is_open = np.zeros(len(groups), np.bool_)
    while True:
        closed = np.flatnonzero(~is_open)
        level = second_level(step, [groups[k] for k in closed], peak_of)
        if level.problem.lower_bound_bytes <= step.lower_bound_bytes:
            return level
        raising = _raising_boxes(level, step.lower_bound_bytes)
        assert raising, "without a box the second level's bound is the step's"
        for k in closed[raising].tolist():
            is_open[max(0, k - width + 1) : k + width] = True


def _raising_boxes(level: SecondLevel, limit_bytes: int) -> list[int]:
    """Boxes during whose lifetime the second level has more than `limit_bytes` alive.

    A box counts with its peak for all of its life. Where the rest peaks at another moment of it,
    that is more than the step needs.
    """
    problem = level.problem
    times = np.concatenate([problem.upper, problem.lower])
    changes = np.concatenate([-problem.padded_bytes, problem.padded_bytes])
    order = np.argsort(times, kind="stable")
    times, live = times[order], np.cumsum(changes[order])
    # Of several events at one time only the last one's sum is a state of memory.
    is_last = np.append(times[1:] != times[:-1], True)
    too_high: NDArray[np.int64] = times[is_last & (live > limit_bytes)]
    first = len(level.loose)
    at = np.searchsorted(too_high, problem.lower[first:])
    inside = np.append(too_high, np.iinfo(np.int64).max)[at] < problem.upper[first:]
    return [int(k) for k in np.flatnonzero(inside)]
