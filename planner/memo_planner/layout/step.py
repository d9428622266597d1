"""The layout of a whole recorded step."""

from __future__ import annotations

from memo_planner.layout.packing import DEFAULT_SECONDS, pack
from memo_planner.layout.placement import Placement
from memo_planner.layout.problem import PackingProblem
from memo_planner.trace.requests import Requests


def lay_out_step(
    requests: Requests, *, alignment_bytes: int = 1, seconds: float = DEFAULT_SECONDS
) -> Placement:
    """Addresses for all requests of a step, with the lowest peak that `seconds` are enough for.

    Raises: InvalidInput; SolverError.
    """
    return pack(step_problem(requests, alignment_bytes), seconds=seconds)


def step_problem(requests: Requests, alignment_bytes: int = 1) -> PackingProblem:
    """All requests of a step as one packing problem. Raises: InvalidInput."""
    return PackingProblem(
        ids=tuple(map(str, requests.ids.tolist())),
        lower=requests.malloc_times,
        upper=requests.free_times,
        size_bytes=requests.size_bytes,
        alignment_bytes=alignment_bytes,
    )
