"""The native packer, for any packing problem and for a whole recorded step from whatever file.

Heuristics go first, then exact search while a gap and time remain.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from memo_planner.checks import check_int, check_number
from memo_planner.errors import InvalidInput, SolverError, format_bytes
from memo_planner.layout._problem import NoPlacement, PackingProblem, Placement, read_problem
from memo_planner.layout._validate import faults
from memo_planner.trace import NOWHERE, PHASES, Requests, is_trace, read_requests

if TYPE_CHECKING:
    from memo_planner._packer import Packer

DEFAULT_SECONDS = 60.0
# An interrupt and a report of progress come at most this late.
_POLL_S = 0.1

Progress = Callable[[int, int, int], None]
"""Told now and then: best peak in bytes (-1: none yet), lower bound in bytes, nodes searched."""


def pack(
    problem: PackingProblem,
    *,
    capacity_bytes: int | None = None,
    seconds: float = DEFAULT_SECONDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Placement:
    """A placement within `capacity_bytes`, or with the lowest peak that `seconds` are enough for.

    The result depends on the arguments alone unless time runs out. The search runs without the
    interpreter's lock; an interrupt ends it.

    Raises: NoPlacement: none within the capacity exists, or none was found in time.
        InvalidInput; SolverError if the native packer is not built.
    """
    check_number("seconds", seconds)
    check_int("seed", seed, 0)
    unit = _unit(problem)
    capacity = _capacity(problem, capacity_bytes, unit)
    begun_s = time.monotonic()
    native = _native()
    packer = native.Packer(problem.lower, problem.upper, problem.padded_bytes // unit)
    _run(packer, lambda: packer.run(capacity, float(seconds), seed), unit, progress)
    placement = Placement(
        problem=problem,
        offset_bytes=packer.offsets() * unit,
        lower_bound_bytes=packer.lower_bound * unit,
        seconds=time.monotonic() - begun_s,
        nodes=packer.nodes,
    )
    if capacity_bytes is not None and placement.peak_bytes > capacity_bytes:
        raise NoPlacement(_refusal(placement, capacity_bytes, float(seconds)))
    return placement


def _unit(problem: PackingProblem) -> int:
    """Bytes of which every size is a multiple: canonical offsets then are multiples too."""
    return int(np.gcd.reduce(problem.padded_bytes)) if len(problem) else 1


def _capacity(problem: PackingProblem, capacity_bytes: int | None, unit: int) -> int | None:
    if capacity_bytes is None:
        return None
    check_int("capacity", capacity_bytes, 1)
    for i in np.flatnonzero(problem.padded_bytes > capacity_bytes)[:1]:
        raise InvalidInput(
            f"buffer {problem.ids[i]!r} alone takes {int(problem.padded_bytes[i]):,} bytes; "
            f"the capacity is {capacity_bytes:,}"
        )
    return capacity_bytes // unit


def _native() -> ModuleType:
    try:
        from memo_planner import _packer
    except ImportError as error:
        raise SolverError(
            f"the native packer is not built ({error}); run: python setup.py build_ext --inplace"
        ) from error
    return _packer


def _run(packer: Packer, search: Callable[[], None], unit: int, progress: Progress | None) -> None:
    """Run the search on a thread of its own, so that this one can report and be interrupted."""
    thread = threading.Thread(target=search, name="packer", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_S)
            if progress is not None and thread.is_alive():
                peak = packer.peak
                progress(peak * unit if peak >= 0 else -1, packer.lower_bound * unit, packer.nodes)
    finally:
        # An interrupt gets here too: the search must end before its arrays go.
        packer.stop()
        thread.join()


def _refusal(placement: Placement, capacity_bytes: int, seconds: float) -> str:
    """Why `placement`, the best that was found in `seconds`, is no answer for the capacity."""
    bound, peak = placement.lower_bound_bytes, placement.peak_bytes
    best = f"best peak {peak:,} ({format_bytes(peak)}), lower bound {bound:,}"
    if bound > capacity_bytes:
        return f"no placement within {capacity_bytes:,} bytes exists; {best}"
    return (
        f"no placement within {capacity_bytes:,} bytes found in {seconds:g} s; {best}; "
        "give it more seconds or a greater capacity"
    )


def lay_out_step(
    requests: Requests, *, alignment_bytes: int = 1, seconds: float = DEFAULT_SECONDS
) -> Placement:
    """Addresses for all requests of a step, with the lowest peak that `seconds` are enough for.

    Raises: InvalidInput; SolverError.
    """
    return pack(step_problem(requests, alignment_bytes), seconds=seconds)


def checked_step_layout(requests: Requests, *, alignment_bytes: int, seconds: float) -> Placement:
    """As `lay_out_step`, and looked at by the validator. Raises: InvalidInput; SolverError."""
    placement = lay_out_step(requests, alignment_bytes=alignment_bytes, seconds=seconds)
    wrong = faults(placement)
    assert not wrong, f"the layout of a step is invalid: {wrong[0]}"
    return placement


def step_problem(requests: Requests, alignment_bytes: int = 1) -> PackingProblem:
    """All requests of a step as one packing problem. Raises: InvalidInput."""
    return PackingProblem(
        ids=tuple(map(str, requests.ids.tolist())),
        lower=requests.malloc_times,
        upper=requests.free_times,
        size_bytes=requests.size_bytes,
        alignment_bytes=alignment_bytes,
    )


def read_step(path: Path) -> Requests:
    """The requests in a trace (JSON), in a trace's CSV, or in a packing problem's.

    A packing problem (`id,lower,upper,size`) knows no phases: all is forward, outside of blocks.

    Raises: PlanFileError, InvalidInput: naming the file and what is wrong.
    """
    if is_trace(path):
        return read_requests(path)
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
