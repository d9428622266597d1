"""The integer problem behind a plan: how many blocks follow each block policy.

PuLP and CBC solve it; whole numbers are trusted only after they were checked. Fractional counts of
the relaxed problem become whole ones: keep the whole parts, place the rest at best. A basic
solution has at most three fractional counts, so at most two blocks are left over; all pairs of
policies are tried for them. With one or two blocks in all, this is exhaustive search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pulp

from memo_planner.errors import SolverError
from memo_planner.programme._cost import Floats, Ints

# CBC may say 2.9999999 for 3; rounded down, that would be a block too few.
_NEARLY = 1e-6
_MOST_MOVES = 100
TIME_LIMIT_S = 10.0
NODE_LIMIT = 200
_ATTEMPTS = 4
_TOLERANCE = 1e-6
"""Share by which CBC may exceed a limit without noticing."""


@dataclass(frozen=True, kw_only=True)
class BlockCounts:
    """Choose counts [policies] of blocks: least total cost within the room on device and host.

    Attributes:
        num_blocks: blocks to hand out. cost_s, kept_bytes, swapped_bytes: per policy.
        gap_s: how far above the optimum a solution may stay.
        device_room_bytes, host_room_bytes: None means no limit.
    """

    num_blocks: int
    cost_s: Floats
    kept_bytes: Floats
    swapped_bytes: Floats
    gap_s: float
    device_room_bytes: int | None
    host_room_bytes: int | None

    @property
    def rooms(self) -> list[tuple[Floats, int]]:
        """Bytes per policy and their room, for each limit there is."""
        pairs = (
            (self.kept_bytes, self.device_room_bytes),
            (self.swapped_bytes, self.host_room_bytes),
        )
        return [(per_block, room) for per_block, room in pairs if room is not None]

    def bound_s(self, prices: tuple[float, ...]) -> float:
        """Cost that no counts which fit undercut: bytes are paid for, and all room is refunded.

        prices: seconds per byte of each of `rooms`, 0 or more. The bound holds for any prices, and
        is as high as the relaxed problem's at those of its solution.
        """
        each_s, refund_s = self.cost_s, 0.0
        for (per_block, room), s_per_byte in zip(self.rooms, prices, strict=True):
            each_s = each_s + per_block * s_per_byte
            refund_s += room * s_per_byte
        return self.num_blocks * float(np.min(each_s)) - refund_s

    def total_s(self, counts: Ints) -> float:
        """Cost of `counts`."""
        return float(counts @ self.cost_s)

    def excess(self, counts: Ints) -> float:
        """Largest share by which `counts` exceed a room, in whole bytes; 0 if they fit."""
        worst = 0.0
        for per_block, room in self.rooms:
            # In whole numbers: a sum of floats could round a byte over the room away.
            used = sum(int(n) * int(b) for n, b in zip(counts, per_block, strict=True) if n)
            worst = max(worst, (used - room) / max(room, 1))
        return worst

    def fits(self, counts: Ints) -> bool:
        """Whether `counts` hand out all blocks and respect every limit, in whole bytes."""
        return int(counts.sum()) == self.num_blocks and self.excess(counts) == 0


def round_counts(problem: BlockCounts, fractional: Floats) -> Ints | None:
    """The best whole counts near `fractional` [policies], or None if none fit."""
    best: Ints | None = None
    for base in _bases(problem.num_blocks, fractional):
        counts = _complete(problem, base)
        if counts is None:
            continue
        if best is None or problem.total_s(counts) < problem.total_s(best):
            best = counts
    return best


def improve(problem: BlockCounts, counts: Ints) -> Ints:
    """Better counts [policies] from fitting ones: re-place two blocks at a time while it helps."""
    for _ in range(_MOST_MOVES):
        bases = _two_fewer(counts)
        found = [moved for base in bases if (moved := _complete(problem, base)) is not None]
        best = min(found, key=problem.total_s, default=counts)
        # What a round saves must be a fair part of the gap, within which all are equal.
        if problem.total_s(best) >= problem.total_s(counts) - problem.gap_s / _MOST_MOVES:
            break
        # What helped once helps again: a model may have hundreds of blocks to move.
        counts = _repeated(problem, counts, best - counts)
    return counts


def _two_fewer(counts: Ints) -> list[Ints]:
    """`counts` less one or two blocks, in every way."""
    bases = [counts]
    for _ in range(min(2, int(counts.sum()))):
        fewer = {tuple(base - unit) for base in bases for unit in _units(base)}
        bases = [np.array(base, np.int64) for base in sorted(fewer)]
    return bases


def _repeated(problem: BlockCounts, counts: Ints, move: Ints) -> Ints:
    """`counts` after one `move` that fits, and as many more of the same as fit."""
    counts = counts + move
    while (counts + move).min() >= 0 and problem.fits(counts + move):
        counts = counts + move
    return counts


def _bases(num_blocks: int, fractional: Floats) -> list[Ints]:
    """The whole parts, less one or two blocks in every way, so that two blocks are left over."""
    bases = [np.floor(fractional + _NEARLY).astype(np.int64)]
    free = min(2, num_blocks)
    while num_blocks - int(bases[0].sum()) < free:
        fewer = {tuple(base - unit) for base in bases for unit in _units(base)}
        bases = [np.array(base, np.int64) for base in sorted(fewer)]
    return bases if num_blocks - int(bases[0].sum()) == free else []


def _units(base: Ints) -> list[Ints]:
    """One block of each policy that `base` uses, as vectors."""
    size = len(base)
    return [np.eye(1, size, i, dtype=np.int64)[0] for i in np.flatnonzero(base).tolist()]


def _complete(problem: BlockCounts, base: Ints) -> Ints | None:
    """`base` and the cheapest one or two blocks that still fit."""
    single = problem.num_blocks - int(base.sum()) == 1
    cost = problem.cost_s if single else np.add.outer(problem.cost_s, problem.cost_s)
    fits = np.ones(cost.shape, np.bool_)
    for per_block, room in problem.rooms:
        used = per_block if single else np.add.outer(per_block, per_block)
        fits &= used <= room - sum(int(n) * int(per_block[n_i]) for n_i, n in _used(base))
    if not fits.any():
        return None
    best = np.unravel_index(np.argmin(np.where(fits, cost, np.inf)), cost.shape)
    counts = base.copy()
    for index in best:
        counts[index] += 1
    return counts


def _used(base: Ints) -> list[tuple[int, int]]:
    return [(i, int(base[i])) for i in np.flatnonzero(base).tolist()]


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """The problem with fractional counts: no whole counts cost less than `bound_s`.

    prices: seconds that one more byte of each of the problem's rooms would save.
    """

    bound_s: float
    counts: Floats
    prices: tuple[float, ...]


def solve_counts(
    problem: BlockCounts, relaxed: Relaxed, start: Ints, *, branches: bool = True
) -> Ints:
    """Whole counts, within `gap_s` of the optimum unless branch and bound meets its node limit.

    `start` fits. It is improved, and returned if it comes that close to the relaxed bound, or
    without `branches`; else branch and bound runs, and the better of the two is taken.
    """
    improved = improve(problem, start)
    if not branches or problem.total_s(improved) <= relaxed.bound_s + problem.gap_s:
        return improved
    found = branch_and_bound(problem)
    return improved if found is None else min(improved, found, key=problem.total_s)


def relax(problem: BlockCounts) -> Relaxed:
    """The relaxed problem's solution. Raises: SolverError if there is none."""
    programme, counts = _programme(problem, 1.0)
    status = _run(programme, _solver(mip=False))
    # Checked beforehand by counting (`_feasible`), so this is the solver's fault.
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
        # Twice what it was over by, else the next answer may be over by the same hair.
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
        # Where there is no room, shares are of 1 byte, and a share of 1 would let that byte in.
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
