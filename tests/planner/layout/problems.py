"""Packing problems for tests, and a solver too simple to be wrong."""

import random
from itertools import permutations

import numpy as np

from memo_planner.layout import PackingProblem

Row = tuple[int, int, int]


def problem_of(rows: list[Row], alignment_bytes: int = 1) -> PackingProblem:
    """A problem of (lower, upper, size) rows."""
    lower, upper, size = (np.array([row[k] for row in rows], np.int64) for k in range(3))
    return PackingProblem(
        ids=tuple(f"b{i}" for i in range(len(rows))),
        lower=lower,
        upper=upper,
        size_bytes=size,
        alignment_bytes=alignment_bytes,
    )


def cut_rectangle(seed: int, num_buffers: int, side: int = 1024) -> PackingProblem:
    """A square of time and bytes cut into buffers, so that a perfect packing is known to exist."""
    chance = random.Random(seed)
    pieces = [(0, side, 0, side)]
    while len(pieces) < num_buffers:
        weights = [float((b - a) * (d - c)) for a, b, c, d in pieces]
        at = chance.choices(range(len(pieces)), weights)[0]
        a, b, c, d = pieces[at]
        if chance.random() < 0.5 and b - a > 1:
            cut = chance.randint(a + 1, b - 1)
            pieces[at : at + 1] = [(a, cut, c, d), (cut, b, c, d)]
        elif d - c > 1:
            cut = chance.randint(c + 1, d - 1)
            pieces[at : at + 1] = [(a, b, c, cut), (a, b, cut, d)]
    chance.shuffle(pieces)
    return problem_of([(a, b, d - c) for a, b, c, d in pieces])


def lowest_peak(problem: PackingProblem) -> int:
    """The optimum by placing buffers in every order, each on top of what it conflicts with."""
    rows = list(
        zip(
            problem.lower.tolist(),
            problem.upper.tolist(),
            problem.padded_bytes.tolist(),
            strict=True,
        )
    )
    return min(_peak_on_top(order) for order in permutations(rows))


def _peak_on_top(order: tuple[Row, ...]) -> int:
    tops: list[tuple[int, int, int]] = []
    for lower, upper, size in order:
        offset = max((top for a, b, top in tops if a < upper and lower < b), default=0)
        tops.append((lower, upper, offset + size))
    return max(top for _, _, top in tops)
