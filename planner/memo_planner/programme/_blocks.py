"""The best block policies for one length and one tile size.

Blocks are identical, so a plan is a count of blocks for each block policy. Up to `EXACT_TILES`
tiles every block policy is offered. Beyond that a grid is offered first, with the points where a
copy window fills up, and then finer grids around the block policies that were chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memo_planner.limits import Limits
from memo_planner.policy import BlockPolicy, Place
from memo_planner.programme._cost import BlockShape, Choices, Flags, Floats, Ints, Prices, price
from memo_planner.programme._counts import BlockCounts, Relaxed, relax, round_counts, solve_counts
from memo_planner.programme._feasible import device_room, host_room, sure_blocks

# 25 * 26 / 2 pairs of counts, x and o in four ways each: 1,300 block policies.
EXACT_TILES = 24
# 17 * 18 / 2 pairs on the grid; finer ones follow around what was chosen.
GRID_STEPS = 16
_REFINE = 8
EQUAL_SHARE = 1e-5
"""Plans closer than this share of a plain step count as equally fast."""
# Preferences add up to at most 3.25 of these: less than what counts as a difference.
_TIE_SHARE = EQUAL_SHARE / 40
_PLACES = ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1))
"""x kept, o kept, o made again: the ways for x and o, attention's recomputation last."""

# The programme's objective is in units of the gap, so it must be above 0.
_LEAST_GAP_S = 1e-12


def all_choices(shape: BlockShape) -> Choices:
    """Every block policy, or a grid of them where a block has more than `EXACT_TILES` tiles.

    By groups of heads all tiles are recomputed, and only the places of x and o are chosen.
    """
    num_tiles = shape.num_tiles
    if shape.profile.num_groups > 1:
        # By groups of heads memory is too short for more, and x comes back by tiles.
        return _with_places(np.zeros(1, np.int64), np.full(1, num_tiles, np.int64), shape)
    if num_tiles <= EXACT_TILES:
        return _with_places(np.arange(num_tiles + 1), np.arange(num_tiles + 1), shape)
    grid = np.linspace(0, num_tiles, GRID_STEPS + 1).round().astype(np.int64)
    swaps, recomputes = _window_tiles(shape)
    return _with_places(np.union1d(grid, swaps), np.union1d(grid, recomputes), shape)


def first_step(shape: BlockShape) -> int:
    """Tiles between neighbours of the first grid; 1 if it holds every block policy."""
    if shape.num_tiles <= EXACT_TILES or shape.profile.num_groups > 1:
        return 1
    return math.ceil(shape.num_tiles / GRID_STEPS)


def finer_choices(shape: BlockShape, chosen: Choices, step: int) -> tuple[Choices, int]:
    """A finer grid around `chosen` (which stay in, first), and its step in tiles."""
    finer = max(1, step // _REFINE)
    offsets = np.arange(-step, step + finer, finer)
    add_swap, add_recompute = (a.ravel() for a in np.meshgrid(offsets, offsets))
    swap = np.concatenate([chosen.swap_tiles, *(w + add_swap for w in chosen.swap_tiles)])
    recompute = np.concatenate(
        [chosen.recompute_tiles, *(r + add_recompute for r in chosen.recompute_tiles)]
    )
    size = len(offsets) ** 2
    x_kept = np.concatenate([chosen.x_kept, np.repeat(chosen.x_kept, size)])
    o_kept = np.concatenate([chosen.o_kept, np.repeat(chosen.o_kept, size)])
    o_again = np.concatenate([chosen.o_again, np.repeat(chosen.o_again, size)])
    valid = (swap >= 0) & (recompute >= 0) & (swap + recompute <= shape.num_tiles)
    near = Choices(
        swap_tiles=swap,
        recompute_tiles=recompute,
        x_kept=x_kept,
        o_kept=o_kept,
        o_again=o_again,
    )
    return near.take(np.flatnonzero(valid)), finer


def ranked_s(shape: BlockShape, choices: Choices, prices: Prices) -> Floats:
    """Extra seconds plus a preference for ties: keep over swap over recompute.

    Among equals it also spreads swapped tiles over the blocks and gathers kept ones.
    """
    num_tiles = shape.num_tiles
    swapped = choices.swap_tiles / num_tiles
    recomputed = choices.recompute_tiles / num_tiles
    kept = 1.0 - swapped - recomputed
    whole_bytes = math.ceil(shape.profile.tile_bytes_per_token * shape.tokens)
    all_bytes = max(1, whole_bytes + shape.x_bytes + shape.o_bytes)
    preference = prices.swapped_bytes / all_bytes + 2 * recomputed
    preference += 0.25 * (swapped**2 - kept**2)
    return np.asarray(prices.extra_s + _TIE_SHARE * (shape.plain_s or 1.0) * preference)


def useful(kept_bytes: Floats, swapped_bytes: Floats, cost_s: Floats) -> Ints:
    """Indices of entries that no other entry matches in all three figures."""
    # What beats an entry keeps no more, so it comes before it; of equals the first stays.
    order = np.lexsort((swapped_bytes, cost_s, kept_bytes))
    kept, sent, cost = kept_bytes[order], swapped_bytes[order], cost_s[order]
    alive = np.ones(len(order), np.bool_)
    for i in range(len(order)):
        if alive[i]:
            beaten = (kept >= kept[i]) & (sent >= sent[i]) & (cost >= cost[i])
            beaten[: i + 1] = False
            alive &= ~beaten
    return np.asarray(order[alive], np.int64)


def _with_places(swaps: Ints, recomputes: Ints, shape: BlockShape) -> Choices:
    """Every pair of counts, and every count of swaps with all else recomputed; x and o each way."""
    num_tiles = shape.num_tiles
    # The first four save o.
    ways = _PLACES if shape.attention_again else _PLACES[:4]
    swap, recompute = (a.ravel() for a in np.meshgrid(swaps, recomputes))
    swap = np.concatenate([swap, swaps])
    recompute = np.concatenate([recompute, num_tiles - swaps])
    pairs = np.unique(np.stack([swap, recompute])[:, swap + recompute <= num_tiles], axis=1)
    count = pairs.shape[1]
    places: Flags = np.repeat(np.array(ways, np.bool_), count, axis=0)
    return Choices(
        swap_tiles=np.tile(pairs[0], len(ways)),
        recompute_tiles=np.tile(pairs[1], len(ways)),
        x_kept=places[:, 0],
        o_kept=places[:, 1],
        o_again=places[:, 2],
    )


def _window_tiles(shape: BlockShape) -> tuple[Ints, Ints]:
    """Counts of swapped and of recomputed tiles around which a copy window fills up."""
    profile, num_tiles = shape.profile, shape.num_tiles
    tile_bytes = max(profile.tile_bytes_per_token * shape.tile_tokens, 1e-9)
    link, times = profile.link, profile.times
    swap_compute_s = times.swap_s_per_token * shape.tile_tokens
    tile_s = times.tilewise_s_per_token * shape.tile_tokens + shape.tile_overhead_s
    # What swapping one more tile adds to what does not fit the window of forward.
    excess_bytes = max(tile_bytes - swap_compute_s * link.d2h_bytes_per_s, 1e-9)
    whole = {0, shape.x_bytes, shape.o_bytes, shape.x_bytes + shape.o_bytes}
    swaps, recomputes = [], []
    for sent in whole:
        forward = (shape.forward_s * link.d2h_bytes_per_s - sent) / excess_bytes
        left_s = shape.backward_s - sent / link.h2d_bytes_per_s
        swap_s = tile_bytes / link.h2d_bytes_per_s
        swaps += [forward, left_s / swap_s, (left_s + num_tiles * tile_s) / (swap_s + tile_s)]
        recomputes.append((forward * swap_s - left_s) / tile_s if tile_s else 0.0)
    return _around(swaps, num_tiles), _around(recomputes, num_tiles)


def _around(tiles: list[float], num_tiles: int) -> Ints:
    """The whole numbers on both sides of each value, cut to `[0, num_tiles]`."""
    low = np.floor(np.clip(tiles, 0, num_tiles)).astype(np.int64)
    return np.unique(np.concatenate([low, np.minimum(low + 1, num_tiles)]))


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

    def solve(self, *, branches: bool) -> tuple[Choices, Ints]:
        """The block policies used and by how many blocks each; branches: as `solve_counts`."""
        return self._used(solve_counts(self.problem, self.relaxed, self.start, branches=branches))

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


def solve_blocks(first: Offer, limits: Limits, *, branches: bool) -> list[BlockPolicy]:
    """The block policies that add least time within `limits`, those that keep least first.

    Their order does not matter to the limits: all kept bytes are there at the end of forward.
    branches: as `solve_counts`. Raises: SolverError.
    """
    shape, step, last = first.shape, first_step(first.shape), first
    while step > 1:
        chosen, counts = last.roughly()
        finer, step = finer_choices(shape, chosen, step)
        fitting = _Fitting(shape, limits, chosen, counts)
        last = _offer(*_problem(shape, limits, finer), fitting)
    chosen, counts = last.solve(branches=branches)
    blocks = []
    for index, count in enumerate(counts):
        # Blocks are identical, so any of them may have the policy.
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
            # A policy that fitted may be gone from the problem; then one that beats it is there.
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
    room, on_host = device_room(shape, limits), host_room(shape, limits)
    affordable = (prices.kept_bytes <= (np.inf if room is None else room)) & (
        prices.swapped_bytes <= (np.inf if on_host is None else on_host)
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
        host_room_bytes=on_host,
    )
    return choices.take(index), problem
