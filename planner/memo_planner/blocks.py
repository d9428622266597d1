"""The best block policies for one length and one tile size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memo_planner.block_counts import BlockCounts
from memo_planner.candidates import (
    EQUAL_SHARE,
    all_choices,
    finer_choices,
    first_step,
    ranked_s,
    useful,
)
from memo_planner.cost import BlockShape, Choices, Ints, price
from memo_planner.feasible import device_room, sure_blocks
from memo_planner.limits import Limits
from memo_planner.mip import Relaxed, relax, solve_counts
from memo_planner.policy import BlockPolicy, Place
from memo_planner.rounding import round_counts

_LEAST_GAP_S = 1e-12


@dataclass(frozen=True, kw_only=True)
class Offer:
    """The block policies offered for one shape, the bound they have, and counts that fit."""

    shape: BlockShape
    choices: Choices
    problem: BlockCounts
    relaxed: Relaxed
    start: Ints

    @property
    def bound_s(self) -> float:
        """Extra seconds of a step that no plan of these block policies undercuts."""
        return self.relaxed.bound_s + self.shape.overhead_s * self.problem.num_blocks

    @property
    def reached_s(self) -> float:
        """Extra seconds that `start` reaches."""
        total_s = self.problem.total_s(self.start)
        return total_s + self.shape.overhead_s * self.problem.num_blocks

    def solve(self) -> tuple[Choices, Ints]:
        """The block policies used and by how many blocks each."""
        return self._used(solve_counts(self.problem, self.relaxed, self.start))

    def roughly(self) -> tuple[Choices, Ints]:
        """The same for `start` as it is: good enough to look around it."""
        return self._used(self.start)

    def _used(self, counts: Ints) -> tuple[Choices, Ints]:
        used = np.flatnonzero(counts)
        return self.choices.take(used), counts[used]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The block policies that a first offer of one shape is made of, not yet solved."""

    shape: BlockShape
    limits: Limits
    choices: Choices
    problem: BlockCounts

    def bound_s(self, prices: tuple[float, ...]) -> float:
        """Extra seconds of a step that no plan undercuts, for any prices of the rooms."""
        return self.problem.bound_s(prices) + self.shape.overhead_s * self.problem.num_blocks

    def offer(self) -> Offer:
        """The solved offer. Raises: SolverError."""
        sure = Choices.of_blocks(sure_blocks(self.shape, self.limits))
        ones = np.ones(len(sure.swap_tiles), np.int64)
        fitting = _Fitting(self.shape, self.limits, sure, ones)
        return _offer(self.choices, self.problem, fitting)


def draft(shape: BlockShape, limits: Limits) -> Draft:
    """All block policies, or a grid of them. Some must fit (`feasible.shortage` is None)."""
    choices, problem = _problem(shape, limits, all_choices(shape))
    return Draft(shape=shape, limits=limits, choices=choices, problem=problem)


def solve_blocks(first: Offer, limits: Limits) -> list[BlockPolicy]:
    """The block policies that add least time within `limits`, those that keep least first.

    Their order does not matter to the limits: all kept bytes are there at the end of forward.
    Raises: SolverError.
    """
    shape, step, last = first.shape, first_step(first.shape), first
    while step > 1:
        chosen, counts = last.roughly()
        finer, step = finer_choices(shape, chosen, step)
        fitting = _Fitting(shape, limits, chosen, counts)
        last = _offer(*_problem(shape, limits, finer), fitting)
    chosen, counts = last.solve()
    blocks = []
    for index, count in enumerate(counts):
        blocks += [chosen.block(index, shape.num_tiles)] * int(count)
    return sorted(blocks, key=_kept_last)


@dataclass(frozen=True)
class _Fitting:
    """Counts [policies] of block policies that fit the limits."""

    shape: BlockShape
    limits: Limits
    choices: Choices
    counts: Ints

    def among(self, problem: BlockCounts) -> Ints:
        """The same with the policies of `problem`: for each the cheapest that takes no more."""
        prices = price(self.shape, self.choices)
        counts = np.zeros(len(problem.cost_s), np.int64)
        for kept, sent, count in zip(
            prices.kept_bytes, prices.swapped_bytes, self.counts, strict=True
        ):
            as_small = (problem.kept_bytes <= kept) & (problem.swapped_bytes <= sent)
            counts[np.argmin(np.where(as_small, problem.cost_s, np.inf))] += count
        assert problem.fits(counts), f"{counts.sum()} blocks fitted {self.limits} before"
        return counts


def _offer(choices: Choices, problem: BlockCounts, fitting: _Fitting) -> Offer:
    """An offer of the priced `choices`, which hold `fitting` or better ones."""
    relaxed = relax(problem)
    start = fitting.among(problem)
    rounded = round_counts(problem, relaxed.counts)
    if rounded is not None:
        start = min(rounded, start, key=problem.total_s)
    return Offer(
        shape=fitting.shape, choices=choices, problem=problem, relaxed=relaxed, start=start
    )


def _kept_last(block: BlockPolicy) -> tuple[int, bool, bool, bool, int]:
    x_kept, o_kept, o_swapped = (
        block.x is Place.KEEP,
        block.o is Place.KEEP,
        block.o is Place.SWAP,
    )
    return block.keep_tiles, o_kept, x_kept, o_swapped, -block.swap_tiles


def _problem(shape: BlockShape, limits: Limits, choices: Choices) -> tuple[Choices, BlockCounts]:
    """Drops choices that no block can afford or that another one beats, and prices the rest."""
    prices = price(shape, choices)
    cost_s = ranked_s(shape, choices, prices)
    room = device_room(shape, limits)
    affordable = (prices.kept_bytes <= (np.inf if room is None else room)) & (
        prices.swapped_bytes <= (limits.host_bytes or np.inf)
    )
    index = np.flatnonzero(affordable)
    index = index[useful(prices.kept_bytes[index], prices.swapped_bytes[index], cost_s[index])]
    num_blocks = shape.profile.num_blocks
    problem = BlockCounts(
        num_blocks=num_blocks,
        cost_s=cost_s[index],
        kept_bytes=prices.kept_bytes[index],
        swapped_bytes=prices.swapped_bytes[index],
        gap_s=max(_LEAST_GAP_S, EQUAL_SHARE * (shape.plain_s or 1.0) * num_blocks),
        device_room_bytes=room,
        host_room_bytes=limits.host_bytes,
    )
    return choices.take(index), problem
