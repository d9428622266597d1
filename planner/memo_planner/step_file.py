"""Requests from whatever file a user has: a trace, a trace's table, or a packing problem."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from memo_planner.layout.problem import PackingProblem
from memo_planner.layout.table import read_problem
from memo_planner.trace.requests import NOWHERE, PHASES, Requests
from memo_planner.trace.table import HEADER, read_csv
from memo_planner.trace.trace import Trace


def read_step(path: Path) -> Requests:
    """The requests in a trace (JSON), in a trace's CSV, or in a packing problem's.

    A packing problem (`id,lower,upper,size`) knows no phases: all is forward, outside of blocks.

    Raises: PlanFileError, InvalidInput: naming the file and what is wrong.
    """
    if path.suffix.lower() == ".json":
        return Trace.load(path).requests
    if _has_origins(path):
        return read_csv(path)
    return requests_of_problem(read_problem(path))


def requests_of_problem(problem: PackingProblem) -> Requests:
    """A problem's buffers as requests in order of lower, with times counted from 1.

    ids: the buffers' rows. At equal times frees come before allocations, as lifetimes are
    half-open.
    """
    order = np.argsort(problem.lower, kind="stable")
    times = np.concatenate([problem.lower[order], problem.upper[order]])
    ranks = np.unique(times, return_inverse=True)[1].astype(np.int64) + 1
    num = len(problem)
    nowhere = np.full(num, NOWHERE)
    return Requests(
        ids=order,
        malloc_times=ranks[:num],
        free_times=ranks[num:],
        size_bytes=problem.size_bytes[order],
        phases=np.full(num, PHASES.index("forward")),
        blocks=nowhere,
        tiles=nowhere,
        ops=np.zeros(num, np.int64),
        op_names=("",),
        end_time=int(ranks.max(initial=1)),
    )


def _has_origins(path: Path) -> bool:
    """Whether a CSV's first line is that of a trace's table."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().strip() == ",".join(HEADER)
    except (OSError, UnicodeDecodeError):
        return False  # the reader of problems says what is wrong
