"""The processes of one self-test, and the speed of copies: each way, both, all ranks at once."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from memo_train.selftest._place import Place
from memo_train.selftest._scenario import Figures, ScenarioFailed
from memo_train.trace import measure_link, measure_link_rates

# Ranks wait for one another while one measures its link alone.
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's number among all, and among those of its node; gloo joins them."""

    rank: int = 0
    num_ranks: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> Ranks:
        """Join the other ranks, if torchrun has started any."""
        num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if num_ranks == 1:
            return cls()
        dist.init_process_group("gloo", timeout=_TIMEOUT)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return cls(rank=dist.get_rank(), num_ranks=num_ranks, local_rank=local_rank)

    def all(self, holds: bool) -> bool:
        """Whether it holds on every rank. A collective call."""
        if self.num_ranks == 1:
            return holds
        least = torch.tensor(int(holds))
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return bool(least.item())

    def gather(self, mine: Any) -> list[Any]:
        """What every rank gave, in their order, on every rank. A collective call."""
        if self.num_ranks == 1:
            return [mine]
        every: list[Any] = [None] * self.num_ranks
        dist.all_gather_object(every, mine)
        return every

    def leave(self) -> None:
        """Wait for the others: torchrun ends all ranks as soon as one has failed."""
        if self.num_ranks > 1:
            dist.barrier()
            dist.destroy_process_group()


def link_rates(place: Place | None, ranks: Ranks) -> Figures:
    """`LinkRates` of all ranks. A collective call, also for a rank that has no device (None).

    Raises: ScenarioFailed on every rank if copies do not run on one; what this rank's copies raise.
    """
    error: Exception | None = None
    try:
        if place is not None:
            measure_link(place.device)
    # Whatever it is: the other ranks wait in the collective below.
    except Exception as raised:
        error = raised
    every = ranks.all(place is not None and error is None)
    if error is not None:
        raise error
    if place is None or not every:
        raise ScenarioFailed("copies do not run on every rank, so none was measured")
    return asdict(measure_link_rates(place.device))
