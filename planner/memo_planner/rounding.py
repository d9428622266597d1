"""From fractional block counts to whole ones: keep the whole parts, place the rest at best.

A basic solution of the relaxed problem has at most three fractional counts, so at most two blocks
are left over; all pairs of policies are tried for them. With one or two blocks in all, this is
exhaustive search.
"""

from __future__ import annotations

import numpy as np

from memo_planner.block_counts import BlockCounts
from memo_planner.cost import Floats, Ints

_NEARLY = 1e-6
_MOST_MOVES = 100


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
        if problem.total_s(best) >= problem.total_s(counts) - problem.gap_s / _MOST_MOVES:
            break
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
