"""Solves the integer problem with PuLP and CBC; trusts whole numbers only after checking them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pulp

from memo_planner.block_counts import BlockCounts
from memo_planner.cost import Floats, Ints
from memo_planner.errors import SolverError
from memo_planner.rounding import improve

TIME_LIMIT_S = 10.0
NODE_LIMIT = 200
_ATTEMPTS = 4
_TOLERANCE = 1e-6
"""Share by which CBC may exceed a limit without noticing."""


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """The problem with fractional counts: no whole counts cost less than `bound_s`.

    prices: seconds that one more byte of each of the problem's rooms would save.
    """

    bound_s: float
    counts: Floats
    prices: tuple[float, ...]


def solve_counts(problem: BlockCounts, relaxed: Relaxed, start: Ints) -> Ints:
    """Whole counts, within `gap_s` of the optimum unless branch and bound meets its node limit.

    `start` fits. It is improved, and returned if it comes that close to the relaxed bound; else
    branch and bound runs, and the better of the two is taken.
    """
    improved = improve(problem, start)
    if problem.total_s(improved) <= relaxed.bound_s + problem.gap_s:
        return improved
    found = branch_and_bound(problem)
    return improved if found is None else min(improved, found, key=problem.total_s)


def relax(problem: BlockCounts) -> Relaxed:
    """The relaxed problem's solution. Raises: SolverError if there is none."""
    programme, counts = _programme(problem, 1.0)
    status = _run(programme, _solver(mip=False))
    if status != "Optimal":
        raise SolverError(f"CBC calls the relaxed problem {status}, although some plan fits")
    values = np.array([count.varValue or 0.0 for count in counts])
    return Relaxed(
        bound_s=float(values @ problem.cost_s), counts=values, prices=_prices(problem, programme)
    )


def _prices(problem: BlockCounts, programme: pulp.LpProblem) -> tuple[float, ...]:
    """What a byte of each room is worth: CBC's dual values, from shares of a room to bytes."""
    duals = {each.name: each.pi or 0.0 for each in programme.constraints()}
    return tuple(
        max(0.0, -duals.get(f"room{i}", 0.0) * problem.gap_s / max(room, 1))
        for i, (_, room) in enumerate(problem.rooms)
    )


def branch_and_bound(problem: BlockCounts) -> Ints | None:
    """CBC's whole counts; where its tolerance breaks a limit by a hair, the limit is tightened."""
    tighter = 0.0
    for _ in range(_ATTEMPTS):
        programme, variables = _programme(problem, 1.0 - tighter)
        if (
            _run(programme, _solver(mip=True, gapAbs=1.0, maxNodes=NODE_LIMIT, cuts=False))
            != "Optimal"
        ):
            return None
        counts = np.array([round(v.varValue or 0.0) for v in variables], np.int64)
        if problem.fits(counts):
            return counts
        tighter = max(_TOLERANCE, 2 * (tighter + problem.excess(counts)))
    return None


def _scale(problem: BlockCounts) -> float:
    """Objective units per second: the allowed gap becomes 1, far above CBC's tolerances."""
    return 1.0 / problem.gap_s


def _programme(
    problem: BlockCounts, room_share: float
) -> tuple[pulp.LpProblem, list[pulp.LpVariable]]:
    """Minimise cost over counts that add up to all blocks; bytes as shares of their room."""
    programme = pulp.LpProblem("blocks", pulp.LpMinimize)
    counts = [
        programme.add_variable(f"n{i}", 0, problem.num_blocks, pulp.LpInteger)
        for i in range(len(problem.cost_s))
    ]
    programme += _weighted(problem.cost_s * _scale(problem), counts)
    programme += pulp.lpSum(counts) == problem.num_blocks
    for i, (per_block, room) in enumerate(problem.rooms):
        used = _weighted(per_block / max(room, 1), counts)
        programme += used <= (room_share if room else 0.0), f"room{i}"
    return programme, counts


def _weighted(weights: Floats, counts: list[pulp.LpVariable]) -> pulp.LpAffineExpression:
    pairs = zip(counts, weights.tolist(), strict=True)
    return pulp.LpAffineExpression([(count, weight) for count, weight in pairs if weight])


def _solver(**options: float) -> pulp.LpSolver:
    """CBC, quiet and deterministic: the copy inside PuLP, or the one on the path."""
    bundled = getattr(pulp, "PULP_CBC_CMD", None)
    path = getattr(bundled, "pulp_cbc_path", None)
    solver = pulp.COIN_CMD(path=path, msg=False, threads=1, timeLimit=TIME_LIMIT_S, **options)
    if not solver.available():
        raise SolverError("the CBC solver was not found; install it with: pip install pulp[cbc]")
    return solver


def _run(programme: pulp.LpProblem, solver: pulp.LpSolver) -> str:
    """CBC's verdict in a word, "Optimal" also for the best of a search that was cut short."""
    programme.solve(solver)
    return str(pulp.LpStatus[programme.status])
