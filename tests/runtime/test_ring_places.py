"""Which tokens and heads are where in a ring of all-to-alls, with threads for ranks (level 1)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch

from memo_train.parallel._ring import Ring
from memo_train.parallel._ulysses import SharedTokens

HEADS, DIM = 6, 2


class ThreadRank:
    """One rank of a group of threads; what it hands over stands in `desk`."""

    def __init__(self, rank: int, size: int, desk: list[Any], barrier: Barrier) -> None:
        self.rank, self.size = rank, size
        self._desk, self._barrier = desk, barrier

    def exchange(self, rows: torch.Tensor, to: list[int], by: list[int]) -> torch.Tensor:
        self._desk[self.rank] = torch.split(rows, to)
        self._barrier.wait()
        received = [self._desk[source][self.rank] for source in range(self.size)]
        self._barrier.wait()
        assert [len(part) for part in received] == by
        return torch.cat(received)


def whole_tensor(tokens: int) -> torch.Tensor:
    """[1, heads, tokens, dim]"""
    return torch.arange(HEADS * tokens * DIM).view(1, HEADS, tokens, DIM)


def entered_and_left(rank: Any, mine: int, inside: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    tokens = mine * rank.size
    positions = torch.arange(tokens)[None]
    ring = Ring(rank, SharedTokens(mine=mine, total=tokens, positions=positions), inside)
    own = whole_tensor(tokens)[:, :, rank.rank * mine :][:, :, :mine]
    entered = ring.enter(own, 2)
    return entered, ring.leave(entered, 2, HEADS), ring.ring.rank


@pytest.mark.parametrize(
    ("size", "inside"), [(1, 1), (2, 1), (3, 1), (5, 1), (4, 2), (6, 2), (6, 3)]
)
@pytest.mark.parametrize("mine", [1, 2, 3, 8])
def test_every_rank_attends_for_two_halves_of_its_heads(size: int, inside: int, mine: int) -> None:
    barrier, desk = Barrier(size), [None] * size
    ranks = [ThreadRank(rank, size, desk, barrier) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda rank: entered_and_left(rank, mine, inside), ranks))
    places, share = size // inside, HEADS // inside
    of_place, tokens = mine * inside, mine * size
    whole = whole_tensor(tokens)
    for rank, (entered, left, place) in enumerate(found):
        # Halves of each place's range, the first one longer.
        starts = [s for p in range(places) for s in (p * of_place, p * of_place - -of_place // 2)]
        halves = [range(a, b) for a, b in zip(starts, [*starts[1:], tokens], strict=True)]
        wanted = [*halves[place], *halves[2 * places - 1 - place]]
        heads = slice(rank % inside * share, (rank % inside + 1) * share)
        assert torch.equal(entered, whole[:, heads, wanted])
        assert torch.equal(left, whole[:, :, rank * mine : (rank + 1) * mine])
